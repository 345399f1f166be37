"""GradCAM against its formula in plain numpy, on real photos and on scenes."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from gradcam_nb import GradCAM, preprocess_for, read_image, vit_reshape_transform
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import TEST, scenes


def by_numpy(activations, gradients, side):
    """The paper, slowly: one picture, one place at a time."""
    channels, height, width = activations.shape
    weights = [sum(gradients[k, y, x] for y in range(height) for x in range(width)) / (height * width) for k in range(channels)]
    raw = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            raw[y, x] = max(0.0, sum(weights[k] * activations[k, y, x] for k in range(channels)))
    heat = np.zeros((side, side))
    for y in range(side):  # bilinear, half-pixel centres
        for x in range(side):
            v, u = (np.clip((c + 0.5) * n / side - 0.5, 0, n - 1) for c, n in ((y, height), (x, width)))
            (y0, fy), (x0, fx) = (int(v), v % 1), (int(u), u % 1)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            heat[y, x] = (1 - fy) * ((1 - fx) * raw[y0, x0] + fx * raw[y0, x1]) + fy * ((1 - fx) * raw[y1, x0] + fx * raw[y1, x1])
    return heat / heat.max()


def graph(model, layer, x, category, laid=lambda t: t):
    """Activations and gradients from plain autograd, as numpy."""
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda m, a, o: (kept.append(o), o.clone())[1])
    output = model(x)
    handle.remove()
    (gradient,) = torch.autograd.grad(output[0, category], kept[0])
    return laid(kept[0]).detach()[0].numpy().astype(float), laid(gradient)[0].numpy().astype(float)


@pytest.mark.parametrize("name, layer", [("cnn", "layer4"), ("cnn", "layer2"), ("vit", "blocks.5.norm1"), ("vit", "blocks.3")])
def test_equals_the_paper_in_numpy(name, layer):
    model, scene = load(f"scenes-{name}"), scenes(1, TEST + 3)
    x, category = (scene.images - 0.5) / 0.5, scene.labels[0].argmax().item()
    laid = vit_reshape_transform if name == "vit" else lambda t: t
    slow = by_numpy(*graph(model, layer, x, category, laid), 128)
    fast = GradCAM(model, layer)(x, category)[0].numpy()
    assert np.abs(fast - slow).max() < 1e-4


@pytest.mark.parametrize("network", ["mobilenet_v2_imagenet", "vit_tiny_imagenet"])
def test_the_dog_and_the_cat(data, network):
    """Real weights, a real photo: for the bull mastiff the peak is on the dog, for the tabby on the cat."""
    import demo_models

    model = getattr(demo_models, network)(data / "models")
    photo = data / "images/misc/both.png"
    boxes = {b["label"]: b["box"] for b in json.loads((data / "annotations/handdrawn_boxes.json").read_text())["boxes"]["misc/both.png"]}
    preprocess = replace(preprocess_for(model), resize="squash", crop_pct=1.0)  # the photo is 224 × 224: given whole
    heats = GradCAM(model)(preprocess(photo).repeat(2, 1, 1, 1), [243, 281])
    for heat, label in zip(heats, ("dog", "cat")):
        y, x = divmod(heat.argmax().item(), heat.shape[1])
        left, top, right, bottom = boxes[label]
        assert left <= x <= right and top <= y <= bottom, f"the peak ({x}, {y}) is not on the {label} {boxes[label]}"


def test_the_photos_have_their_usual_top_class(data):
    """The road from a file to a score is the one of the models' authors."""
    import demo_models

    names = json.loads((data / "annotations/imagenet_classes.json").read_text())
    names = names if isinstance(names, list) else list(names.values())
    for network in ("mobilenet_v2_imagenet", "vit_tiny_imagenet"):
        model = getattr(demo_models, network)(data / "models")
        preprocess = preprocess_for(model)
        for file, label in (("misc/kitten_224.png", "tabby"), ("coral/parrot.jpg", "macaw"), ("coral/hot_dog.jpg", "hotdog")):
            cam = GradCAM(model)
            cam(preprocess(read_image(data / "images" / file)))
            assert label in str(names[cam.outputs[0].argmax().item()]).lower()


def test_peaks_lie_on_the_object_asked_for():
    model, batch = load("scenes-cnn"), scenes(200, TEST + 2000)
    x, hits = (batch.images - 0.5) / 0.5, []
    picture, category = batch.labels.nonzero(as_tuple=True)
    cam = GradCAM(model)
    for rows in torch.arange(len(picture)).split(64):
        peaks = cam(x[picture[rows]], category[rows]).flatten(1).argmax(1)
        hits.append(batch.masks[picture[rows], category[rows]].flatten(1)[torch.arange(len(rows)), peaks])
    assert torch.cat(hits).float().mean() >= 0.90


def test_costs_a_forward_pass_and_the_backward_pass_behind_the_layer():
    """Counted multiplications: the floor, and not one more."""
    model, x = torchvision.models.resnet18().eval(), torch.randn(2, 3, 64, 64)

    def flops(f):
        with FlopCounterMode(display=False) as counter:
            f()
        return counter.get_total_flops()

    with torch.no_grad():
        forward = flops(lambda: model(x))
    behind = 2 * 2 * 512 * 1000  # the classifier, transposed, for two pictures
    assert flops(lambda: GradCAM(model, "layer4")(x, 5)) == forward + behind


def test_two_threads_with_one_model():
    model = load("scenes-cnn").train()
    xs = [torch.randn(1, 3, 128, 128) for _ in range(6)]
    alone = [GradCAM(model, "layer4")(x, i) for i, x in enumerate(xs)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda i: GradCAM(model, "layer4")(xs[i % 6], i % 6), range(48)))
    assert all(torch.allclose(heat, alone[i % 6], atol=1e-5) for i, heat in enumerate(together))
    assert all(m.training for m in model.modules()) and all(p.grad is None for p in model.parameters())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_the_gpu(dtype):
    model, scene = load("scenes-cnn"), scenes(4, TEST)
    x = (scene.images - 0.5) / 0.5
    expected = GradCAM(model, "layer4")(x, scene.labels.argmax(1))
    heat = GradCAM(model.to("cuda", dtype), "layer4")(x.to("cuda", dtype), scene.labels.argmax(1))
    assert heat.device.type == "cuda" and heat.dtype == torch.float32
    for a, b in zip(heat.cpu(), expected):
        assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.98
