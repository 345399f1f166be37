"""Metrics of faithfulness: against slow forms written from their papers, and against other libraries where those compute the same."""

import copy
from contextlib import nullcontext
from functools import cache

import numpy as np
import pytest
import torch
from oracles_metrics import (
    SIDE,
    N,
    a_number_each,
    close,
    in_order,
    network,
    one_by_one,
    pictures,
    quantus_says,
    seeded,
    state_of,
    untouched,
)
from torch import nn

from gradcam_nb.methods.gradcam import GradCAM
from gradcam_nb.metrics.comprehensiveness import Comprehensiveness
from gradcam_nb.metrics.confidence_change import CamMultImageConfidenceChange, multiply_tensor_with_cam
from gradcam_nb.metrics.curve import CurveMetric, curve_figure
from gradcam_nb.metrics.deletion import Deletion
from gradcam_nb.metrics.drop import DropInConfidence
from gradcam_nb.metrics.faithfulness import ranks
from gradcam_nb.metrics.imputation import FILLS, as_fill, blurred
from gradcam_nb.metrics.increase import IncreaseInConfidence
from gradcam_nb.metrics.infidelity import Infidelity, random_squares
from gradcam_nb.metrics.insertion import Insertion
from gradcam_nb.metrics.sufficiency import Sufficiency

CHEAP = {
    "CamMultImageConfidenceChange": CamMultImageConfidenceChange,
    "DropInConfidence": DropInConfidence,
    "IncreaseInConfidence": IncreaseInConfidence,
    "Insertion": lambda **o: Insertion(steps=6, **o),
    "Deletion": lambda **o: Deletion(steps=6, **o),
    "Comprehensiveness": Comprehensiveness,
    "Sufficiency": Sufficiency,
    "Infidelity": lambda **o: Infidelity(samples=12, **o),
    "Infidelity-differences": lambda **o: Infidelity(samples=12, multiply_by_inputs=False, **o),
    "Infidelity-gaussian": lambda **o: Infidelity(samples=12, perturbation="gaussian", **o),
}
metrics = pytest.mark.parametrize("make", CHEAP.values(), ids=CHEAP.keys())


@cache
def world():
    """The network, its pictures, and two maps of each: GradCAM's (with ties) and a random one."""
    model, (x, classes, _) = network(), pictures()
    return model, x, classes, {"gradcam": GradCAM(model)(x, classes), "random": seeded(N, SIDE, SIDE, seed=1)}


@cache
def exact():
    return copy.deepcopy(world()[0]).double()


def p(picture, category):
    """The probability of a class, float64."""
    with torch.no_grad():
        scores = exact()(torch.from_numpy(np.ascontiguousarray(picture, dtype=np.float64))[None])[0].numpy()
    e = np.exp(scores - scores.max())
    return float(e[category] / e.sum())


def numbers(i, name):
    _, x, classes, maps = world()
    return x[i].double().numpy(), int(classes[i]), maps[name][i]


maps_of = pytest.mark.parametrize("name", ["gradcam", "random"])


# Ranks


@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
def test_ranks_are_the_places_in_a_stable_order(levels):
    maps = torch.randint(0, levels, (3, 6, 7), generator=torch.Generator().manual_seed(levels)).float()
    for heat, rank in zip(maps, ranks(maps)):
        assert rank.flatten().argsort().tolist() == in_order(heat)


def test_exactly_as_many_are_on_top_as_are_asked_for():
    """A map that is 94 % zeros has no value that parts its top 10 % from the rest."""
    heat = torch.zeros(1, 20, 20)
    heat[0, 5:9, 7:13] = torch.rand(4, 6) + 0.1
    assert (heat == 0).float().mean() == 0.94
    assert (ranks(heat) < 40).sum() == 40
    assert (ranks(heat) < 24)[0, 5:9, 7:13].all()
    assert (heat < np.percentile(heat, 90)).sum() == 0  # PyPI grad-cam's rule keeps nothing


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float16, torch.float64])
def test_ranks_of_any_format(dtype):
    maps = torch.tensor([[[0, 1], [1, 0]]]).to(dtype)
    assert ranks(maps).tolist() == [[[2, 0], [1, 3]]]
    assert ranks(maps).dtype == torch.int64
    assert ranks(torch.tensor([[0.0, -0.0, 1.0, -torch.inf, torch.inf]])).tolist() == [[2, 3, 1, 4, 0]]
    with pytest.raises(ValueError, match="maps: has NaN"):
        ranks(torch.tensor([[0.0, torch.nan]]))


# What stands in for pixels


def test_blur_is_the_papers_gaussian():
    from scipy.ndimage import correlate1d
    from torchvision.transforms.functional import gaussian_blur

    x = torch.randn(2, 3, 40, 31)
    kernel = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 5**2))
    kernel /= kernel.sum()
    slow = correlate1d(correlate1d(x.double().numpy(), kernel, axis=2, mode="nearest"), kernel, axis=3, mode="nearest")
    close(blurred(x), slow, atol=1e-5)
    torch.testing.assert_close(blurred(x)[..., 5:-5, 5:-5], gaussian_blur(x, [11, 11], [5.0, 5.0])[..., 5:-5, 5:-5], atol=1e-5, rtol=1e-4)


def test_fills_keep_format_and_take_any_dimensions():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        for size in ((9,), (4, 13), (5, 6, 7)):
            x = torch.randn(2, 3, *size).to(dtype)
            for name in FILLS:
                assert as_fill(name)(x).shape == x.shape
                assert as_fill(name)(x).dtype == dtype
    assert as_fill(torch.ones_like) is torch.ones_like
    with pytest.raises(ValueError, match="start: got 'grey'; pass one of zero, mean, blur"):
        as_fill("grey", "start")


# The picture times its map


@maps_of
def test_change_drop_increase_by_hand(name):
    model, x, classes, maps = world()
    change, drop, share, rise = [], [], [], []
    for i in range(N):
        picture, c, heat = numbers(i, name)
        y, o = p(picture, c), p(picture * heat.double().numpy()[None], c)
        change.append(o - y)
        drop.append(max(0, y - o))
        share.append(max(0, y - o) / y)
        rise.append(float(o > y))
    ask = (x, maps[name], classes, model)
    close(CamMultImageConfidenceChange()(*ask), change)
    close(DropInConfidence()(*ask), share)
    close(DropInConfidence(relative=False)(*ask), drop)
    close(IncreaseInConfidence()(*ask), rise)


@maps_of
@pytest.mark.parametrize("score", ["softmax", "raw"])
def test_change_drop_increase_as_pytorch_grad_cam(name, score):
    from pytorch_grad_cam.metrics import cam_mult_image as theirs
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget

    model, x, classes, maps = world()
    targets = [{"softmax": ClassifierOutputSoftmaxTarget, "raw": ClassifierOutputTarget}[score](int(c)) for c in classes]
    for ours in (
        CamMultImageConfidenceChange(score=score),
        DropInConfidence(score=score, relative=False),
        IncreaseInConfidence(score=score),
    ):
        expected = getattr(theirs, ours.name)()(x, maps[name].numpy(), targets, model)
        close(ours(x, maps[name], classes, model), expected, atol=1e-5)
        # Their targets serve ours, too.
        close(ours(x, maps[name], targets, model), expected, atol=1e-5)
    torch.testing.assert_close(multiply_tensor_with_cam(x[0], maps[name][0]), theirs.multiply_tensor_with_cam(x[0], maps[name][0]))


class Extractor:
    """What torchcam's metrics ask of a method: here, maps that are given."""

    def __init__(self, model, maps):
        self.model, self.maps = model, maps

    def __call__(self, *args, **kwargs):
        return [self.maps]

    def fuse_cams(self, cams):
        return cams[0]

    def _hooks_off(self):
        return nullcontext()


@maps_of
def test_drop_and_increase_as_torchcam(name):
    from torchcam.metrics import ClassificationMetric

    model, x, classes, maps = world()
    theirs = ClassificationMetric(Extractor(model, maps[name]), lambda scores: scores.softmax(-1))
    theirs.update(x, classes.tolist())
    # They add 1e-7 to the probability before they divide by it: 5e-5 of the smallest here.
    assert theirs.summary()["avg_drop"] == pytest.approx(DropInConfidence()(x, maps[name], classes, model).mean().item(), abs=1e-4)
    assert theirs.summary()["conf_increase"] == IncreaseInConfidence()(x, maps[name], classes, model).mean().item()


def test_a_share_of_nothing():
    before = torch.tensor([0.0, 1e-38, 1e-7, 0.5, -1.0, -1.0, 0.0])
    after = torch.tensor([[0.0, 0.0, 0.0, 0.6, 0.0, -2.0, -1.0]])
    share = DropInConfidence().rate(before, after)
    assert share[:5].tolist() == [0, 1, 1, 0, 0]
    assert share[5:].isnan().all()
    assert DropInConfidence(relative=False).rate(before, after).isfinite().all()


def test_a_map_that_knows_nothing_has_the_best_drop():
    model, x, classes, maps = world()
    fake = torch.ones(N, SIDE, SIDE)
    fake[:, 0, 0] = 0
    assert DropInConfidence()(x, fake, classes, model).max() < 1e-3 < DropInConfidence()(x, maps["gradcam"], classes, model).mean()
    assert CamMultImageConfidenceChange.misleads
    assert DropInConfidence.misleads
    assert IncreaseInConfidence.misleads


# Insertion and deletion


def curve_by_hand(i, name, filling, steps, inserts):
    picture, c, heat = numbers(i, name)
    order, start, end = in_order(heat), (filling, picture)[not inserts], (picture, filling)[not inserts]
    scores = []
    for k in range(steps + 1):
        canvas = start.reshape(3, -1).copy()
        for q in order[: k * len(order) // steps]:
            canvas[:, q] = end.reshape(3, -1)[:, q]
        scores.append(p(canvas.reshape(picture.shape), c))
    return scores


@maps_of
@pytest.mark.parametrize("steps", [1, 7])
def test_insertion_and_deletion_by_hand(name, steps):
    model, x, classes, maps = world()
    ask = (x[:2], maps[name][:2], classes[:2], model)
    for metric, fill in ((Insertion(steps=steps), "blur"), (Deletion(steps=steps), "zero"), (Insertion(steps=steps, start="mean"), "mean")):
        fillings = [as_fill(fill)(x[[i]].double())[0].numpy() for i in range(2)]
        curves = [curve_by_hand(i, name, filling, steps, metric.inserts) for i, filling in enumerate(fillings)]
        areas = [sum((a + b) / 2 for a, b in zip(curve, curve[1:])) / steps for curve in curves]
        close(metric.curves(*ask), curves, atol=1e-5)
        close(metric(*ask), areas, atol=1e-6)
        assert metric.shares.tolist() == pytest.approx([k / steps for k in range(steps + 1)])


@maps_of
def test_insertion_and_deletion_as_torchcam(name):
    from torchcam.metrics import DeletionInsertionMetric

    model, x, classes, maps = world()
    theirs = DeletionInsertionMetric(Extractor(model, maps[name]), lambda scores: scores.softmax(-1), steps=8)
    theirs.update(x, classes.tolist())
    ask = (x, maps[name], classes, model)
    assert theirs.summary()["insertion_auc"] == pytest.approx(Insertion(steps=8, start="zero")(*ask).mean().item(), rel=1e-4)
    assert theirs.summary()["deletion_auc"] == pytest.approx(Deletion(steps=8)(*ask).mean().item(), rel=1e-4)
    # Their default is the raw score, and the filling can be ours.
    theirs = DeletionInsertionMetric(Extractor(model, maps[name]), steps=8, baseline=blurred)
    theirs.update(x, classes.tolist())
    assert theirs.summary()["insertion_auc"] == pytest.approx(Insertion(steps=8, score="raw")(*ask).mean().item(), rel=1e-4)


def grey_world():
    """A network for pictures of one channel, where a pixel is a number."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5), nn.ReLU(), nn.Conv2d(8, 8, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    ).eval()
    x = torch.randn(3, 1, 16, 16)
    rng = torch.Generator().manual_seed(0)
    maps = torch.stack([torch.randperm(256, generator=rng).reshape(16, 16) for _ in range(3)]) / 256
    return model, x, torch.tensor([0, 3, 4]), maps


def test_deletion_as_quantus_flips_pixels(monkeypatch):
    """Of one channel the curves are the same; their area leaves out the first point and is not divided by the steps."""
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)  # gone from numpy 2.4, and quantus 0.6.0 asks for it
    model, x, classes, maps = grey_world()
    ways = dict(features_in_step=16, perturb_baseline=0.0, normalise=False)
    ask = dict(x=x, classes=classes, call=dict(model=model, device="cpu", softmax=True))
    ours = Deletion(steps=16).curves(x, maps, classes, model)
    close(ours[:, 1:], quantus_says("PixelFlipping", maps, **ask, **ways), atol=1e-5)
    areas = quantus_says("PixelFlipping", maps, **ask, **ways, return_auc_per_sample=True)
    close(torch.trapezoid(ours[:, 1:], dim=1), areas, atol=1e-4)


def test_what_is_put_back_first_is_what_is_taken_last():
    model, x, classes, maps = grey_world()
    for fill in ("zero", "mean", "blur"):
        torch.testing.assert_close(
            Insertion(start=fill, steps=8)(x, maps, classes, model), Deletion(fill=fill, steps=8)(x, -maps, classes, model)
        )


def test_more_steps_than_pixels_and_one_step():
    model, x, classes, maps = grey_world()
    area = Deletion(steps=256)(x, maps, classes, model)
    torch.testing.assert_close(Deletion(steps=1000)(x, maps, classes, model), area, atol=5e-3, rtol=0)
    ends = [model(rows).softmax(-1)[range(3), classes].detach() for rows in (x, 0 * x)]
    torch.testing.assert_close(Deletion(steps=1)(x, maps, classes, model), (ends[0] + ends[1]) / 2)


def test_the_order_alone_counts():
    model, x, classes, maps = world()
    for metric in (Insertion(steps=4), Deletion(steps=4), Comprehensiveness(), Sufficiency()):
        assert torch.equal(metric(x, maps["gradcam"], classes, model), metric(x, 4 * maps["gradcam"], classes, model))


def test_a_figure_of_curves():
    figure = curve_figure({"a": torch.linspace(0, 1, 5), "b": [1, 1, 1]}, "share")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a  0.500", "b  1.000"]
    assert figure._repr_png_()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="curves: got shape"):
        curve_figure({"a": torch.ones(2, 5)})


# The top pixels, taken away or left alone


@maps_of
@pytest.mark.parametrize("fill", ["zero", "blur"])
def test_comprehensiveness_and_sufficiency_by_hand(name, fill):
    model, x, classes, maps = world()
    comprehensive, sufficient = [], []
    for i in range(2):
        picture, c, heat = numbers(i, name)
        order, filling = in_order(heat), as_fill(fill)(x[[i]].double())[0].numpy()
        lost, kept = [], []
        for q in (0.01, 0.05, 0.1, 0.2, 0.5):
            top = np.zeros(SIDE * SIDE, bool)
            top[order[: round(q * SIDE * SIDE)]] = True
            top = top.reshape(SIDE, SIDE)
            lost.append(p(picture, c) - p(np.where(top, filling, picture), c))
            kept.append(p(picture, c) - p(np.where(top, picture, filling), c))
        comprehensive.append(sum(lost) / 5)
        sufficient.append(sum(kept) / 5)
    ask = (x[:2], maps[name][:2], classes[:2], model)
    close(Comprehensiveness(fill=fill)(*ask), comprehensive, atol=1e-5)
    close(Sufficiency(fill=fill)(*ask), sufficient, atol=1e-5)


def test_at_least_one_pixel_and_the_ends():
    model, x, classes, maps = grey_world()
    _, shown = Comprehensiveness(shares=[1e-6, 0.5])(x, maps, classes, model, return_visualization=True)
    assert (shown != x[:, None]).flatten(2).sum(2).tolist() == [[1, 128]] * 3
    assert Sufficiency(shares=[1])(x, maps, classes, model).abs().max() == 0
    for shares in ([], [0], [1.5], [10, 20]):
        with pytest.raises(ValueError, match="shares: got"):
            Comprehensiveness(shares=shares)


def test_sufficiency_is_not_that_of_quantus():
    """Theirs compares the maps of pictures and changes no picture."""
    model, x, classes, maps = grey_world()
    theirs = quantus_says("Sufficiency", maps, x=x, classes=classes, call=dict(model=model, device="cpu"))
    assert set(theirs.tolist()) <= {0.0, 0.5, 1.0}


# Infidelity


@maps_of
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": False},
        {"multiply_by_inputs": False},
        {"multiply_by_inputs": False, "scale": False},
        {"fill": "mean", "multiply_by_inputs": False},
    ],
)
def test_infidelity_by_hand(name, options):
    model, x, classes, maps = world()
    squares, expected = random_squares(9, (SIDE, SIDE), 3).numpy(), []
    for i in range(2):
        picture, c, heat = numbers(i, name)
        heat, filling = heat.double().numpy(), as_fill(options.get("fill", "zero"))(x[[i]].double())[0].numpy()
        told, fall = [], []
        for square in squares:
            I = np.where(square, picture - filling, 0)
            spread = [square] if options.get("multiply_by_inputs", True) else I
            told.append(sum((heat * channel).sum() for channel in spread))
            fall.append(p(picture, c) - p(picture - I, c))
        told, fall = np.array(told), np.array(fall)
        beta = (told * fall).mean() / (told**2).mean() if options.get("scale", True) else 1
        expected.append(((beta * told - fall) ** 2).mean())
    close(Infidelity(samples=9, seed=3, **options)(x[:2], maps[name][:2], classes[:2], model), expected, rtol=1e-4, atol=1e-8)


@maps_of
def test_infidelity_of_a_noisy_baseline_by_hand(name):
    model, x, classes, maps = world()
    drawn, expected = torch.randn(9, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3)).double().numpy(), []
    for i in range(2):
        picture, c, heat = numbers(i, name)
        noises = 0.2 * (picture.max() - picture.min()) * drawn
        told = np.array([sum((heat.double().numpy() * channel).sum() for channel in picture - noise) for noise in noises])
        fall = np.array([p(picture, c) - p(noise, c) for noise in noises])
        expected.append((((told * fall).mean() / (told**2).mean() * told - fall) ** 2).mean())
    close(Infidelity(samples=9, seed=3, perturbation="gaussian")(x[:2], maps[name][:2], classes[:2], model), expected, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("contributions", [True, False])
@pytest.mark.parametrize("scale", [True, False])
@maps_of
def test_infidelity_as_captum(name, scale, contributions):
    from captum.metrics import infidelity

    model, x, classes, maps = world()
    n = 10
    squares = random_squares(n, (SIDE, SIDE))

    def remove(pictures):
        inside = squares.repeat(len(pictures) // n, 1, 1)[:, None].expand_as(pictures)
        return inside.float() if contributions else pictures * inside, pictures * ~inside

    spread = maps[name][:, None].expand_as(x) / (3 if contributions else 1)
    theirs = infidelity(lambda rows: model(rows).softmax(-1), remove, x, spread, target=classes, n_perturb_samples=n, normalize=scale)
    ours = Infidelity(samples=n, scale=scale, multiply_by_inputs=contributions)(x, maps[name], classes, model)
    close(ours, theirs, rtol=1e-3, atol=1e-7)


def test_infidelity_as_quantus():
    """One block as large as the picture is the same. Of several, theirs are never put back: they pile up."""
    model, x, classes, maps = grey_world()
    ask = dict(x=x, classes=classes, call=dict(model=model, device="cpu", softmax=True))

    def theirs(size):
        return quantus_says("Infidelity", maps, **ask, perturb_patch_sizes=[size], n_perturb_samples=1, perturb_baseline=0.0)

    class Blocks(Infidelity):
        def squares(self, pictures):
            return self.blocks

    ours = Blocks(samples=1, scale=False, multiply_by_inputs=False)
    ours.blocks = torch.ones(1, 16, 16, dtype=bool)
    close(ours(x, maps, classes, model), theirs(16), rtol=1e-4)

    four = theirs(8)
    blocks = torch.zeros(4, 16, 16, dtype=bool)
    for k, (top, left) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8)]):
        blocks[k, top : top + 8, left : left + 8] = True
    ours = Blocks(samples=4, scale=False, multiply_by_inputs=False)
    ours.blocks = blocks
    assert not torch.allclose(ours(x, maps, classes, model), four, rtol=0.05)
    ours.blocks = blocks.cumsum(0).bool()
    close(ours(x, maps, classes, model), four, rtol=1e-4)


def test_squares_are_all_equally_likely():
    squares = random_squares(40_000, (6, 7), seed=1)
    seen, counts = squares.flatten(1).unique(dim=0, return_counts=True)
    # Sides of 1 and 2 (10/28 of 6): 42 + 30 squares.
    assert len(seen) == 72
    assert set(seen.sum(1).tolist()) == {1, 4}
    expected = 40_000 / 72
    assert ((counts - expected) ** 2 / expected).sum() < 110  # chi square with 71 degrees of freedom: 0.2 % beyond 110
    assert torch.equal(random_squares(9, (6, 7)), random_squares(9, (6, 7)))
    assert random_squares(5, (50,)).shape == (5, 50)
    assert random_squares(5, (6, 7, 8)).shape == (5, 6, 7, 8)


def test_infidelity_of_a_linear_model_is_zero():
    weights = torch.randn(2, 12, 12, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 2, 12, 12, generator=torch.Generator().manual_seed(1))

    def linear(rows):
        return (rows * weights).flatten(1).sum(1, keepdim=True)

    contributions = (x * weights).sum(1)
    assert Infidelity(samples=50, scale=False, score="raw")(x, contributions, 0, linear).max() < 1e-8
    assert Infidelity(samples=50, score="raw")(x, -7 * contributions, 0, linear).max() < 1e-8
    assert Infidelity(samples=50, score="raw")(x, contributions.roll(3, 1), 0, linear).min() > 1


def test_no_map_is_worse_than_zeros_and_zeros_are_finite():
    model, x, classes, maps = world()
    metric = Infidelity(samples=12)
    worst = metric(x, torch.zeros(N, SIDE, SIDE), classes, model)
    assert worst.isfinite().all()
    for name, heat in maps.items():
        assert (metric(x, heat, classes, model) <= worst * (1 + 1e-5)).all(), name


# All of them


@metrics
def test_batch_is_one_by_one(make):
    model, x, classes, maps = world()
    heat, turned = maps["gradcam"], [2, 0]
    whole = make()(x, heat, classes, model)
    a_number_each(whole, N)
    close(one_by_one(make(), x, heat, classes, model), whole, atol=1e-5)
    close(make(batch_size=5)(x, heat, classes, model), whole, atol=1e-5)
    close(make()(x[turned], heat[turned], classes[turned], model), whole[turned], atol=1e-5)


@metrics
def test_model_and_input_are_as_they_were(make):
    x, classes, heat = world()[1][:1], world()[2][:1], world()[3]["gradcam"][:1]
    model = copy.deepcopy(world()[0]).train()
    state, kept = state_of(model), x.clone()
    whole = make()(x, heat, classes, world()[0])
    close(make()(x, heat, classes, model), whole, atol=1e-5)
    assert model.training
    assert torch.equal(x, kept)
    untouched(model, state)


@metrics
def test_changed_pictures_are_given(make):
    model, x, classes, maps = grey_world()
    metric = make()
    number, shown = metric(x, maps, classes, model, return_visualization=True)
    torch.testing.assert_close(number, metric(x, maps, classes, model))
    copies = () if metric.steps == 1 else (metric.steps,)
    assert shown.shape == (3, *copies, *x.shape[1:])
    assert (shown.reshape(3, -1, 256) != x.reshape(3, 1, 256)).any()


@metrics
@pytest.mark.parametrize("size", [(40,), (9, 12), (6, 7, 5)], ids=["signal", "picture", "volume"])
def test_any_number_of_dimensions_and_a_black_box(make, size):
    def black_box(rows):
        return torch.stack([rows.flatten(1).mean(1), rows.flatten(1).amax(1)], 1)

    x, maps = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)), seeded(2, *size, seed=1)
    number = make()(x, maps, 1, black_box)
    a_number_each(number, 2)
    torch.testing.assert_close(number, make()(x, lambda pictures, targets: maps, 1, black_box))


@metrics
def test_half_precision(make):
    model, x, classes, maps = grey_world()
    number = make()(x.bfloat16(), maps, classes, copy.deepcopy(model).bfloat16())
    a_number_each(number, 3)


@pytest.mark.parametrize(
    "make",
    [
        CamMultImageConfidenceChange,
        DropInConfidence,
        lambda **o: Insertion(steps=20, **o),
        lambda **o: Deletion(steps=20, **o),
        Comprehensiveness,
        Sufficiency,
        lambda **o: Infidelity(samples=24, **o),
    ],
    ids=["change", "drop", "insertion", "deletion", "comprehensiveness", "sufficiency", "infidelity"],
)
def test_the_truth_beats_noise_and_its_opposite(make):
    """Twenty steps: an object that covers 5 % is gone within the first of eight, in any order."""
    model, x, classes, maps = world()
    truth = pictures()[2].float()
    metric = make(score="sigmoid")
    sign = 1 if metric.higher_is_better else -1
    good, noise, bad = (sign * metric(x, m, classes, model).mean() for m in (truth, maps["random"], 1 - truth))
    assert good > noise
    assert good > bad


def test_directions_and_papers():
    up = {CamMultImageConfidenceChange, IncreaseInConfidence, Insertion, Comprehensiveness}
    for kind in up | {DropInConfidence, Deletion, Sufficiency, Infidelity}:
        assert kind.higher_is_better == (kind in up)
        assert "arXiv" in kind.paper
        assert kind.misleads.endswith(".")
    assert repr(Deletion()) == "Deletion (lower is better)"
    assert issubclass(Insertion, CurveMetric)
    for make, said in (
        (lambda: Insertion(start="black"), "start: got 'black'"),
        (lambda: Deletion(fill="black"), "fill: got 'black'"),
        (lambda: Deletion(steps=0), "steps: got 0"),
        (lambda: Infidelity(perturbation="noise"), "perturbation: got 'noise'"),
        (lambda: Infidelity(samples=0), "samples, sigma: got 0"),
        (lambda: Infidelity(sigma=0), "sigma: got 256 and 0"),
    ):
        with pytest.raises(ValueError, match=said):
            make()
