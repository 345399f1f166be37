"""RISE, DRISE and OptiCAM: against slow forms of their own, what random masks must converge to, a real detector."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from gradcam_nb.methods.drise import DRISE
from gradcam_nb.methods.opticam import OptiCAM
from gradcam_nb.methods.rise import RISE, RandomMasks
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import TEST, scenes
from gradcam_nb.targets.detection import DetectionTarget


def shares(size, cells, shift):
    """What each pixel of a shifted mask takes from each cell along one axis: bilinear, half-pixel centres."""
    cell = -(-size // cells)
    table = np.zeros((size, cells))
    for pixel in range(size):
        at = np.clip((pixel + shift + 0.5) * cells / ((cells + 1) * cell) - 0.5, 0, cells - 1)
        table[pixel, int(at)] += 1 - at % 1
        table[pixel, min(int(at) + 1, cells - 1)] += at % 1
    return table


def slow_masks(n, size, cells, keep, seed):
    """The masks of a seed, pixel by pixel."""
    rng = torch.Generator().manual_seed(seed)
    grids = (torch.rand(n, *[cells] * len(size), generator=rng) < keep).double().numpy()
    shifts = [torch.randint(-(-side // cells), (n,), generator=rng).tolist() for side in size]
    for i, mask in enumerate(grids):
        for axis, side in enumerate(size):
            mask = np.moveaxis(np.tensordot(shares(side, cells, shifts[axis][i]), mask, (1, axis)), 0, axis)
        yield mask


def slow_rise(score, x, n, cells, keep, seed, centred):
    """The paper's sum for one picture, one mask at a time."""
    masks = list(slow_masks(n, x.shape[2:], cells, keep, seed))
    scores = np.array([score(x * torch.from_numpy(mask).to(x)) for mask in masks])
    if centred:
        scores = scores - scores.mean()
    heat = sum(s * mask for s, mask in zip(scores, masks)) / (n * keep)
    heat = np.clip(heat, 0, None) if centred else heat - heat.min()
    return heat / heat.max()


def asked():
    scene = scenes(1, TEST + 2017)
    return load("scenes-cnn"), scene.images * 2 - 1, scene.labels[0].argmax().item()


@pytest.mark.parametrize("size, cells", [((30,), 4), ((20, 33), 7), ((9, 8, 10), 3)])
def test_masks_pixel_by_pixel(size, cells):
    masks = RandomMasks(12, size, cells, 0.4, seed=5)
    slow = np.stack(list(slow_masks(12, size, cells, 0.4, 5)))
    assert np.abs(masks[:].numpy() - slow).max() < 1e-5
    assert torch.equal(masks[3:8], masks[:][3:8]) and 0 <= slow.min() and slow.max() <= 1 + 1e-9


@pytest.mark.parametrize(
    "how", [{}, {"centred": True}, {"score": "sigmoid"}, {"score": "raw", "centred": True}, {"cells": 4, "keep": 0.7, "seed": 3}]
)
def test_rise_equals_the_paper_one_mask_at_a_time(how):
    model, x, category = asked()
    link = {"softmax": lambda y: y.softmax(-1), "sigmoid": torch.sigmoid, "raw": lambda y: y}[how.get("score", "softmax")]
    with torch.no_grad():
        slow = slow_rise(
            lambda t: link(model(t))[0, category].item(),
            x,
            50,
            how.get("cells", 7),
            how.get("keep", 0.5),
            how.get("seed", 0),
            how.get("centred", False),
        )
    heat = RISE(model, n_masks=50, progress=False, **how)(x, category)[0].numpy()
    assert np.abs(heat - slow).max() < 1e-4


@pytest.mark.parametrize("size, cells", [((24,), 4), ((10, 12), 3)])
def test_rise_of_a_linear_model(size, cells):
    """Cells are independent, so the masks' covariance is known: p (1 - p) times the mean over the shifts of what two pixels share."""
    torch.manual_seed(1)
    w, x, keep = torch.randn(size).double().numpy(), torch.randn(1, 1, *size), 0.4
    along = [np.mean([shares(side, cells, s) @ shares(side, cells, s).T for s in range(-(-side // cells))], 0) for side in size]
    covariance = along[0] if len(size) == 1 else np.kron(*along)
    closed = (covariance * (1 - keep) @ (w * x[0, 0].double().numpy()).ravel()).reshape(size)

    def model(t):
        return (t[:, 0] * torch.from_numpy(w).to(t)).flatten(1).sum(1, keepdim=True)

    cam = RISE(model, n_masks=40000, cells=cells, keep=keep, score="raw", centred=True, batch_size=1000, progress=False)
    run = cam.run(x, 0)
    found = cam.get_maps(run, [run.targets])[0, 0].numpy()
    assert np.abs(found - closed).max() < 0.04 * np.abs(closed).max()
    assert np.corrcoef(found.ravel(), closed.ravel())[0, 1] > 0.999


class Dots(nn.Module):
    """A toy detector: a box around each of two bright colours, as large as it is seen, with scores of both classes."""

    def forward(self, pictures):
        return [self.found(picture) for picture in pictures]

    def found(self, picture):
        boxes, scores, classes = [], [], []
        for label in range(2):
            rows, columns = torch.where(picture[label] > 0.3)
            if len(rows):
                boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                scores.append(picture[label].max())
                classes.append([picture[c][rows, columns].mean() for c in range(2)])
        return dict(
            boxes=torch.tensor(boxes).reshape(-1, 4).float(),
            labels=torch.arange(len(boxes)),
            scores=torch.tensor(scores),
            class_scores=torch.tensor(classes).reshape(-1, 2),
        )


def dots():
    x = torch.full((2, 3, 40, 40), 0.1)
    x[:, 0, 4:14, 6:18] = 0.9
    x[0, 1, 24:36, 20:34] = x[1, 1, 20:30, 2:12] = 0.8
    return Dots(), x


def slow_match(box, scores, output):
    """The paper's similarity, a detection at a time."""
    best = 0.0
    for b, s, o in zip(output["boxes"].tolist(), output["class_scores"].double().numpy(), output["scores"].tolist()):
        width, height = (max(0.0, min(box[i + 2], b[i + 2]) - max(box[i], b[i])) for i in (0, 1))
        union = (box[2] - box[0]) * (box[3] - box[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
        best = max(best, width * height / union * (s @ scores) / np.linalg.norm(s) / np.linalg.norm(scores) * o)
    return best


@pytest.mark.parametrize("centred", [False, True])
def test_drise_equals_the_paper_one_mask_at_a_time(centred):
    model, x = dots()
    (found,) = model(x[:1])
    heats = DRISE(model, n_masks=80, cells=5, centred=centred, progress=False).many(x[:1], [0, 1])[0].numpy()
    for index, heat in enumerate(heats):
        box, scores = found["boxes"][index].tolist(), found["class_scores"][index].double().numpy()
        slow = slow_rise(lambda t: slow_match(box, scores, model(t)[0]), x[:1], 80, 5, 0.5, 0, centred)
        assert np.abs(heat - slow).max() < 1e-4


def test_drise_finds_the_box_of_its_target():
    model, x = dots()
    heats = DRISE(model, n_masks=600, cells=5, centred=True, progress=False).many(x[:1], [0, 1])[0]
    for heat, (left, top, right, bottom) in zip(heats, model(x[:1])[0]["boxes"].int().tolist()):
        inside = heat[top:bottom, left:right]
        assert inside.max() == 1 and inside.mean() > 3 * heat.mean()


def test_drise_on_a_real_detector(data):
    """YOLOX-nano, the dog and the cat: the peak inside the box, and far more of the map than the box's share of the photo."""
    import demo_models

    from gradcam_nb import read_image

    detector = demo_models.yolox_nano_coco(data / "models")
    photo = torch.from_numpy(np.array(read_image(data / "images/misc/both.png"))).permute(2, 0, 1)[None] / 255
    (found,) = detector(photo)
    assert [demo_models.COCO_CLASSES[label] for label in found["labels"]] == ["dog", "cat"]
    heats = DRISE(detector, n_masks=150, cells=6, centred=True, progress=False).many(photo, [0, 1])[0]
    for heat, (left, top, right, bottom) in zip(heats, found["boxes"].int().tolist()):
        inside = heat[top:bottom, left:right]
        assert inside.max() == 1 and inside.sum() / heat.sum() > 1.5 * inside.numel() / heat.numel()


@pytest.mark.parametrize("made", ["RISE", "DRISE"])
def test_one_by_one_and_in_passes_of_any_size(made):
    if made == "RISE":
        model, x = load("scenes-cnn"), scenes(3, TEST + 2018).images * 2 - 1
        cam = lambda **how: RISE(model, n_masks=25, progress=False, **how)
    else:
        model, x = dots()
        cam = lambda **how: DRISE(model, n_masks=25, cells=4, progress=False, **how)
    heat = cam()(x)
    for other in (torch.cat([cam()(x[[i]]) for i in range(len(x))]), cam(batch_size=1)(x), cam(batch_size=4)(x), cam(batch_size=1000)(x)):
        torch.testing.assert_close(other, heat, rtol=0, atol=1e-4)


def slow_opticam(model, layer, x, category, iterations, objective):
    """One picture, Adam written out, gradients of u by autograd through everything."""
    kept = []
    handle = layer.register_forward_hook(lambda m, a, o: kept.append(o.detach()))
    whole = model(x)[0, category].detach()
    handle.remove()
    A = kept[0][0]
    u, first, second = torch.zeros(len(A), dtype=A.dtype), 0, 0

    def mask(u):
        weights = u.exp() / u.exp().sum()
        S = sum(w * a for w, a in zip(weights, A))
        S = nn.functional.interpolate(S[None, None], size=x.shape[2:], mode="bilinear" if x.ndim == 4 else "linear")[0, 0]
        return (S - S.min()) / (S.max() - S.min())

    for step in range(1, iterations + 1):
        u = u.detach().requires_grad_()
        score = model(x * mask(u))[0, category]
        loss = -score if objective == "mask" else (whole - score).abs()
        (g,) = torch.autograd.grad(loss, u)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        u = u - 0.1 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return mask(u.detach()).detach()


@pytest.mark.parametrize("objective", ["mask", "difference"])
def test_opticam_equals_a_plain_descent(objective):
    """A few iterations on the scenes: from there on the descent amplifies rounding, so all hundred on a smooth network.

    In float64: Adam makes a whole step of a gradient that is nothing but rounding, and rounding differs from machine to machine.
    """
    model, x, category = asked()
    model, x = copy.deepcopy(model).double(), x.double()
    slow = slow_opticam(model, model.layer4, x, category, 4, objective)
    heat = OptiCAM(model, "layer4", iterations=4, objective=objective, progress=False)(x, category)[0]
    assert (heat - slow).abs().max() < 1e-4
    torch.manual_seed(0)
    smooth = nn.Sequential(nn.Conv2d(2, 6, 3, 2), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).double()
    x = torch.randn(1, 2, 16, 20, dtype=torch.double)
    slow = slow_opticam(smooth, smooth[1], x, 1, 100, objective)
    heat = OptiCAM(smooth, "1", objective=objective, progress=False)(x, 1)[0]
    assert (heat - slow).abs().max() < 1e-4


def test_opticam_raises_the_score_picture_by_picture():
    scene = scenes(4, TEST + 2020)
    model, x, classes = load("scenes-cnn"), scene.images * 2 - 1, scene.labels.argmax(1)
    start, heat = (OptiCAM(model, "layer4", iterations=n, progress=False)(x, classes) for n in (0, 25))
    with torch.no_grad():
        before, after = (model(x * h[:, None])[range(4), classes] for h in (start, heat))
    assert (after > before).all()
    single = OptiCAM(model, "layer4", iterations=25, progress=False)
    torch.testing.assert_close(torch.cat([single(x[[i]], classes[[i]]) for i in range(4)]), heat, rtol=0, atol=1e-6)
    side_by_side = OptiCAM(model, "layer4", iterations=3, batch_size=3, progress=False)(x, classes)
    torch.testing.assert_close(side_by_side, OptiCAM(model, "layer4", iterations=3, progress=False)(x, classes), rtol=0, atol=1e-4)


def test_opticam_writes_no_gradient_and_works_in_any_mode():
    model, x, category = asked()
    heat = OptiCAM(model, "layer4", iterations=3, progress=False)(x, category)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    frozen = copy.deepcopy(model).requires_grad_(False).train()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(
                OptiCAM(frozen, "layer4", iterations=3, progress=False)(x.clone(), category), heat, rtol=0, atol=1e-4
            )
    assert all(m.training for m in frozen.modules())


@pytest.mark.parametrize("method", [RISE, DRISE, OptiCAM])
def test_stopped_it_leaves_the_model_as_it_was(method):
    model, x = dots() if method is DRISE else (copy.deepcopy(load("scenes-cnn")), scenes(2, TEST + 2019).images * 2 - 1)
    model.train().register_buffer("calls", torch.zeros(()))
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt

    handle = model.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        method(model, batch_size=2, progress=False)(x)
    handle.remove()
    assert len(calls) == 6 and all(m.training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_a_detector_that_finds_nothing_says_so():
    model, x = dots()
    with pytest.raises(ValueError, match="finds nothing"):
        DRISE(model, n_masks=5, progress=False)(torch.zeros(1, 3, 40, 40))
    with pytest.warns(UserWarning, match="blank heat map"):
        assert not DRISE(model, n_masks=5, progress=False)(x, DetectionTarget([38, 0, 40, 2])).any()
