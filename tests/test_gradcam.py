"""GradCAM against its formula in plain numpy, on real photos and on scenes."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torchvision
from oracles import (
    asked,
    assert_peak_in_box,
    assert_untouched,
    correlation,
    dog_and_cat,
    flops,
    graph,
    heat_map,
    share_of_hits,
    weighed,
)

from gradcam_nb import GradCAM, preprocess_for, read_image
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import TEST, scenes


@pytest.mark.parametrize("name, layer", [("cnn", "layer4"), ("cnn", "layer2"), ("vit", "blocks.5.norm1"), ("vit", "blocks.3")])
def test_equals_the_paper_in_numpy(name, layer):
    model, x, category = asked(name, number=3)
    (a,), (g,) = graph(model, layer, x, lambda output: output[0, category])
    weights = [sum(gradient.ravel()) / gradient.size for gradient in g]
    fast = GradCAM(model, layer)(x, category)[0].numpy()
    assert np.abs(fast - heat_map(weighed(a, weights), 128)).max() < 1e-4


@pytest.mark.parametrize("network", ["mobilenet_v2_imagenet", "vit_tiny_imagenet"])
def test_the_dog_and_the_cat(data, network):
    """Real weights, a real photo: for the bull mastiff the peak is on the dog, for the tabby on the cat."""
    import demo_models

    model = getattr(demo_models, network)(data / "models")
    x, classes, animals = dog_and_cat(data, model)
    for heat, (label, box) in zip(GradCAM(model)(x.repeat(2, 1, 1, 1), classes), animals):
        assert_peak_in_box(heat, label, box)


@pytest.mark.parametrize("network", ["mobilenet_v2_imagenet", "vit_tiny_imagenet"])
def test_the_photos_have_their_usual_top_class(data, network):
    """The road from a file to a score is the one of the models' authors."""
    import demo_models

    names = json.loads((data / "annotations/imagenet_classes.json").read_text())
    names = names if isinstance(names, list) else list(names.values())
    model = getattr(demo_models, network)(data / "models")
    preprocess = preprocess_for(model)
    for file, label in (("misc/kitten_224.png", "tabby"), ("coral/parrot.jpg", "macaw"), ("coral/hot_dog.jpg", "hotdog")):
        cam = GradCAM(model)
        cam(preprocess(read_image(data / "images" / file)))
        top = str(names[cam.outputs[0].argmax().item()]).lower()
        assert label in top, f"{file} is a {top}"


def test_peaks_lie_on_the_object_asked_for():
    assert share_of_hits(GradCAM(load("scenes-cnn")), scenes(200, TEST + 2000)) >= 0.90


def test_costs_a_forward_pass_and_the_backward_pass_behind_the_layer():
    """Counted multiplications: the floor, and not one more."""
    model, x = torchvision.models.resnet18().eval(), torch.randn(2, 3, 64, 64)
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
    for i, heat in enumerate(together):
        assert torch.allclose(heat, alone[i % 6], atol=1e-5), f"call {i}"
    assert_untouched(model)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_the_gpu(dtype):
    model, scene = load("scenes-cnn"), scenes(4, TEST)
    x = (scene.images - 0.5) / 0.5
    expected = GradCAM(model, "layer4")(x, scene.labels.argmax(1))
    heat = GradCAM(model.to("cuda", dtype), "layer4")(x.to("cuda", dtype), scene.labels.argmax(1))
    assert heat.device.type == "cuda"
    assert heat.dtype == torch.float32
    for i, (a, b) in enumerate(zip(heat.cpu(), expected)):
        assert correlation(a, b) > 0.98, f"picture {i}"
