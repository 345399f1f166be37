"""RISE, DRISE and OptiCAM: against slow forms of their own, what random masks must converge to, a real detector."""

import copy

import numpy as np
import pytest
import torch
from oracles import asked, assert_untouched, interpolation, stopping
from torch import nn

from gradcam_nb.methods.drise import DRISE
from gradcam_nb.methods.opticam import OptiCAM
from gradcam_nb.methods.rise import RISE, RandomMasks
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import TEST, scenes
from gradcam_nb.targets.detection import DetectionTarget


def shares(size, cells, shift):
    """What each pixel of a shifted mask takes from each cell along one axis: a cell more than needed, enlarged, and cut out."""
    cell = -(-size // cells)
    return interpolation(cells, (cells + 1) * cell)[shift : shift + size]


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


@pytest.mark.parametrize("size, cells", [((30,), 4), ((20, 33), 7), ((9, 8, 10), 3)])
def test_masks_pixel_by_pixel(size, cells):
    masks = RandomMasks(12, size, cells, 0.4, seed=5)
    slow = np.stack(list(slow_masks(12, size, cells, 0.4, 5)))
    assert np.abs(masks[:].numpy() - slow).max() < 1e-5
    assert torch.equal(masks[3:8], masks[:][3:8])
    assert 0 <= slow.min()
    assert slow.max() <= 1 + 1e-9


@pytest.mark.parametrize(
    "how", [{}, {"centred": True}, {"score": "sigmoid"}, {"score": "raw", "centred": True}, {"cells": 4, "keep": 0.7, "seed": 3}]
)
def test_rise_equals_the_paper_one_mask_at_a_time(how):
    model, x, category = asked("cnn", 2017)
    link = {"softmax": lambda y: y.softmax(-1), "sigmoid": torch.sigmoid, "raw": lambda y: y}[how.get("score", "softmax")]
    options = dict(cells=7, keep=0.5, seed=0, centred=False) | {name: value for name, value in how.items() if name != "score"}
    with torch.no_grad():
        slow = slow_rise(lambda t: link(model(t))[0, category].item(), x, 50, **options)
    heat = RISE(model, n_masks=50, progress=False, **how)(x, category)[0].numpy()
    assert np.abs(heat - slow).max() < 1e-4


@pytest.mark.parametrize("size, cells", [((24,), 4), ((10, 12), 3)])
def test_rise_of_a_linear_model(size, cells):
    """Cells are independent, so the masks' covariance is known: p (1 - p) times the mean over the shifts of what two pixels share."""
    torch.manual_seed(1)
    w, x, keep = torch.randn(size).double().numpy(), torch.randn(1, 1, *size), 0.4

    def shared(side):
        """What two pixels share along one axis, the mean over all shifts."""
        tables = [shares(side, cells, shift) for shift in range(-(-side // cells))]
        return np.mean([table @ table.T for table in tables], 0)

    along = [shared(side) for side in size]
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
    for b, s, objectness in zip(output["boxes"].tolist(), output["class_scores"].double().numpy(), output["scores"].tolist()):
        width, height = (max(0.0, min(box[i + 2], b[i + 2]) - max(box[i], b[i])) for i in (0, 1))
        union = (box[2] - box[0]) * (box[3] - box[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
        cosine = (s @ scores) / np.linalg.norm(s) / np.linalg.norm(scores)
        best = max(best, width * height / union * cosine * objectness)
    return best


@pytest.mark.parametrize("centred", [False, True])
def test_drise_equals_the_paper_one_mask_at_a_time(centred):
    model, x = dots()
    (found,) = model(x[:1])
    heats = DRISE(model, n_masks=80, cells=5, centred=centred, progress=False).many(x[:1], [0, 1])[0].numpy()

    def slow(box, scores):
        return slow_rise(lambda t: slow_match(box, scores, model(t)[0]), x[:1], 80, 5, 0.5, 0, centred)

    for index, heat in enumerate(heats):
        expected = slow(found["boxes"][index].tolist(), found["class_scores"][index].double().numpy())
        assert np.abs(heat - expected).max() < 1e-4, f"detection {index}"


def test_drise_finds_the_box_of_its_target():
    model, x = dots()
    heats = DRISE(model, n_masks=600, cells=5, centred=True, progress=False).many(x[:1], [0, 1])[0]
    for heat, (left, top, right, bottom) in zip(heats, model(x[:1])[0]["boxes"].int().tolist()):
        inside = heat[top:bottom, left:right]
        assert inside.max() == 1, "the peak is outside of the box"
        assert inside.mean() > 3 * heat.mean()


def test_drise_on_a_real_detector(data):
    """YOLOX-nano, the dog and the cat: the peak inside the box, and far more of the map than the box's share of the photo."""
    import demo_models

    from gradcam_nb import read_image

    detector = demo_models.yolox_nano_coco(data / "models")
    photo = torch.from_numpy(np.array(read_image(data / "images/misc/both.png"))).permute(2, 0, 1)[None] / 255
    (found,) = detector(photo)
    assert [demo_models.COCO_CLASSES[label] for label in found["labels"]] == ["dog", "cat"]
    heats = DRISE(detector, n_masks=150, cells=6, centred=True, progress=False).many(photo, [0, 1])[0]
    for label, heat, (left, top, right, bottom) in zip(("dog", "cat"), heats, found["boxes"].int().tolist()):
        inside = heat[top:bottom, left:right]
        assert inside.max() == 1, f"the peak is outside of the {label}'s box"
        assert inside.sum() / heat.sum() > 1.5 * inside.numel() / heat.numel(), label


@pytest.mark.parametrize("made", ["RISE", "DRISE"])
def test_one_by_one_and_in_passes_of_any_size(made):
    if made == "RISE":
        model, x = load("scenes-cnn"), scenes(3, TEST + 2018).images * 2 - 1
    else:
        model, x = dots()

    def heats(pictures, **how):
        if made == "RISE":
            return RISE(model, n_masks=25, progress=False, **how)(pictures)
        return DRISE(model, n_masks=25, cells=4, progress=False, **how)(pictures)

    together = heats(x)
    one_by_one = torch.cat([heats(x[[i]]) for i in range(len(x))])
    torch.testing.assert_close(one_by_one, together, rtol=0, atol=1e-4)
    for size in (1, 4, 1000):
        assert torch.allclose(heats(x, batch_size=size), together, rtol=0, atol=1e-4), f"passes of {size}"


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


# In float64: Adam makes a whole step of a gradient that is nothing but rounding, and rounding differs from machine to machine.


@pytest.mark.parametrize("objective", ["mask", "difference"])
def test_opticam_equals_a_plain_descent_on_the_scenes(objective):
    """A few iterations: from there on the descent amplifies rounding."""
    model, x, category = asked("cnn", 2017)
    model, x = copy.deepcopy(model).double(), x.double()
    slow = slow_opticam(model, model.layer4, x, category, 4, objective)
    heat = OptiCAM(model, "layer4", iterations=4, objective=objective, progress=False)(x, category)[0]
    assert (heat - slow).abs().max() < 1e-4


@pytest.mark.parametrize("objective", ["mask", "difference"])
def test_opticam_equals_a_plain_descent_on_a_smooth_network(objective):
    """All hundred iterations."""
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
    model, x, category = asked("cnn", 2017)
    heat = OptiCAM(model, "layer4", iterations=3, progress=False)(x, category)
    assert_untouched(model, training=False)
    assert all(p.requires_grad for p in model.parameters())
    frozen = copy.deepcopy(model).requires_grad_(False).train()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            again = OptiCAM(frozen, "layer4", iterations=3, progress=False)(x.clone(), category)
            assert torch.allclose(again, heat, rtol=0, atol=1e-4), mode.__name__
    assert_untouched(frozen)


@pytest.mark.parametrize("method", [RISE, DRISE, OptiCAM])
def test_stopped_it_leaves_the_model_as_it_was(method):
    model, x = dots() if method is DRISE else (copy.deepcopy(load("scenes-cnn")), scenes(2, TEST + 2019).images * 2 - 1)
    model.train().register_buffer("calls", torch.zeros(()))
    stop = stopping(6)
    handle = model.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        method(model, batch_size=2, progress=False)(x)
    handle.remove()
    assert len(stop.calls) == 6
    assert_untouched(model)


def test_a_detector_that_finds_nothing_says_so():
    model, x = dots()
    with pytest.raises(ValueError, match="finds nothing"):
        DRISE(model, n_masks=5, progress=False)(torch.zeros(1, 3, 40, 40))
    with pytest.warns(UserWarning, match="blank heat map"):
        assert not DRISE(model, n_masks=5, progress=False)(x, DetectionTarget([38, 0, 40, 2])).any()
