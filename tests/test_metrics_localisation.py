"""Localisation and complexity against their formulas, by loops over pixels in float64; and against Quantus and PyPI grad-cam."""

import itertools
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles_metrics import a_number_each, close, network, pictures, quantus_says

from gradcam_nb.methods.eigencam import EigenCAM
from gradcam_nb.methods.gradcam import GradCAM
from gradcam_nb.metrics.complexity import Complexity
from gradcam_nb.metrics.energy_inside import EnergyInside
from gradcam_nb.metrics.iou import BestIoU, IoU
from gradcam_nb.metrics.pointing_game import PointingGame, within
from gradcam_nb.metrics.rank_accuracy import RelevanceRank
from gradcam_nb.metrics.relevance_mass import RelevanceMass
from gradcam_nb.metrics.sparseness import Sparseness

# --- slow forms: a map and a mask of any number of dimensions -> a number


def spread(a):
    return list(np.ndindex(a.shape))


def slow_pointing(tolerance):
    def rate(m, o):
        peaks, inside = np.argwhere(m == m.max()), np.argwhere(o)
        return np.mean([min(((p - q) ** 2).sum() for q in inside) <= tolerance**2 for p in peaks])

    return rate


def slow_share(pool):
    def rate(m, o):
        m = pool(m)
        return sum(m[p] for p in spread(m) if o[p]) / m.sum() if m.any() else 0.0

    return rate


def slow_rank(m, o):
    # ties: the mean over many drawings by lot has this as its limit
    k, hits, left = int(o.sum()), 0.0, int(o.sum())
    for value in np.unique(m)[::-1]:
        same = [p for p in spread(m) if m[p] == value]
        taken = min(left, len(same))
        hits, left = hits + taken / len(same) * sum(o[p] for p in same), left - taken
    return hits / k


def overlap(d, o):
    return (d & o).sum() / (d | o).sum()


def slow_iou(threshold):
    def rate(m, o):
        return overlap((m >= threshold * m.max()) & (m > 0), o)

    return rate


def slow_best(m, o):
    return max(overlap(m >= t, o) for t in np.unique(m))


def slow_boxes(threshold):
    def rate(m, o):
        from scipy.ndimage import find_objects, label

        drawn = (m >= threshold * m.max()) & (m > 0)
        pieces, n = label(drawn, np.ones((3, 3)))
        sizes = np.bincount(pieces.flat, minlength=n + 1)[1:]
        if not n:
            return 0.0
        # of equally large pieces either may be meant
        largest = [find_objects(pieces)[i] for i in np.flatnonzero(sizes == sizes.max())]
        (truth,) = find_objects(o.astype(int))
        found = []
        for piece in largest:
            d, t = np.zeros_like(o), np.zeros_like(o)
            d[piece], t[truth] = True, True
            found.append(overlap(d, t))
        return found

    return rate


METRICS = {
    "pointing 15": (PointingGame(), slow_pointing(15)),
    "pointing 2.5": (PointingGame(2.5), slow_pointing(2.5)),
    "pointing 0": (PointingGame(0), slow_pointing(0)),
    "energy": (EnergyInside(), slow_share(lambda m: m)),
    "mass": (RelevanceMass(), slow_share(lambda m: np.maximum(m, 0))),
    "mass, absolute": (RelevanceMass("absolute"), slow_share(np.abs)),
    "mass, square": (RelevanceMass("square"), slow_share(np.square)),
    "rank": (RelevanceRank(), slow_rank),
    "iou 0.2": (IoU(0.2), slow_iou(0.2)),
    "iou": (IoU(), slow_iou(0.5)),
    "best iou": (BestIoU(), slow_best),
    "iou of boxes": (IoU(0.4, box=True), slow_boxes(0.4)),
}
SIGNED = ["pointing 2.5", "mass", "mass, absolute", "mass, square", "rank", "iou", "best iou"]


@cache
def of_scenes():
    """Maps of a network, half as fine as the pictures, so that loops over pixels end; and the objects."""
    x, classes, truth = pictures()
    maps = torch.cat([cam(network())(x, classes) for cam in (GradCAM, EigenCAM)])
    return maps[:, ::4, ::4], truth[:, ::4, ::4].repeat(2, 1, 1)


@cache
def made(kind):
    """Maps and masks by program."""
    torch.manual_seed(0)
    if kind == "scenes":
        return of_scenes()
    if kind == "noise":
        return torch.rand(5, 13, 17), torch.rand(5, 13, 17) < 0.3
    if kind == "smooth":
        maps, hills = (F.interpolate(torch.rand(5, 1, 4, 5), size=(19, 23), mode="bilinear")[:, 0] for _ in range(2))
        return maps, hills > 0.6
    if kind == "tied":
        return torch.randint(0, 4, (8, 9, 7)).float(), torch.rand(8, 9, 7) < 0.4
    if kind == "one value":
        return torch.tensor([0.0, 0.25, 1.0])[:, None, None].expand(3, 6, 5), torch.rand(3, 6, 5) < 0.4
    if kind == "signal":
        return torch.rand(4, 31), torch.rand(4, 31) < 0.3
    if kind == "volume":
        return torch.rand(3, 5, 6, 7), torch.rand(3, 5, 6, 7) < 0.2
    if kind == "signed":
        return torch.randn(5, 9, 11), torch.rand(5, 9, 11) < 0.3


KINDS = ["scenes", "noise", "smooth", "tied", "one value", "signal", "volume"]


def agree(metric, slow, maps, masks, truth=None):
    got = metric(maps, masks)
    a_number_each(got, len(maps))
    for value, m, o in zip(got.tolist(), maps, truth if truth is not None else masks):
        wanted = slow(m.double().numpy(), o.numpy().astype(bool))
        assert min(abs(value - w) for w in np.atleast_1d(wanted)) <= 1e-5 * max(1, np.max(wanted))


# Boxes are for pictures.
EVERY = [(name, kind) for name in METRICS for kind in KINDS if "boxes" not in name or kind not in ("signal", "volume")]


@pytest.mark.parametrize("name, kind", EVERY)
def test_the_formula(name, kind):
    agree(*METRICS[name], *made(kind))


@pytest.mark.parametrize("name", SIGNED)
def test_the_formula_for_maps_with_a_sign(name):
    agree(*METRICS[name], *made("signed"))


@pytest.mark.parametrize("name", METRICS)
def test_boxes_are_masks_of_the_pixels_whose_centres_they_hold(name):
    maps, _ = made("smooth")
    boxes = [[[2, 3, 9, 8]], [[0.4, 0.6, 5.5, 7.4], [4, 4, 30, 30]], [[6, 6, 8, 18]], [[0, 0, 23, 19]], [[20, 1, 23, 2]]]
    truth = torch.zeros(maps.shape, dtype=torch.bool)
    for i, several in enumerate(boxes):
        for (left, top, right, bottom), y, x in itertools.product(several, range(19), range(23)):
            truth[i, y, x] |= left <= x + 0.5 < right and top <= y + 0.5 < bottom
    agree(*METRICS[name], maps, boxes, truth)
    one_each = torch.tensor([several[0] for several in boxes])
    torch.testing.assert_close(METRICS[name][0](maps, one_each), METRICS[name][0](maps, [[box] for box in one_each.tolist()]))


@pytest.mark.parametrize("name", METRICS)
def test_a_batch_is_its_maps_one_by_one(name):
    for kind in ("smooth", "tied"):
        maps, masks = made(kind)
        metric = METRICS[name][0]
        alone = torch.cat([metric(m[None], o[None]) for m, o in zip(maps, masks)])
        torch.testing.assert_close(alone, metric(maps, masks), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_the_mask_is_perfect_and_noise_is_not(name):
    _, truth = of_scenes()
    metric = METRICS[name][0]
    assert (metric(truth.float(), truth) == 1).all()
    assert metric.higher_is_better
    torch.manual_seed(0)
    noise = torch.stack([metric(torch.rand(truth.shape), truth) for _ in range(20)])
    assert noise.mean() < (0.9 if name == "pointing 15" else 0.3)  # 15 is half the side of these maps


@pytest.mark.parametrize("name", METRICS)
def test_edges(name):
    metric = METRICS[name][0]
    torch.manual_seed(1)
    maps = torch.rand(3, 8, 8) + 0.1
    none = torch.zeros(3, 8, 8, dtype=torch.bool)
    some = none.clone()
    some[1, 2:4, 2:5] = True
    assert metric(maps, none).isnan().all()
    assert metric(maps, some).isnan().tolist() == [True, False, True]
    assert metric(maps, [[], [[2, 2, 5, 4]], []]).isnan().tolist() == [True, False, True]
    every = metric(maps + 10, ~none)
    torch.testing.assert_close(every, torch.ones(3))
    blank = metric(0 * maps, some)[1].item()
    if "energy" in name or "mass" in name or name.startswith("iou"):
        assert blank == 0
    elif not name.startswith("pointing"):
        assert blank == pytest.approx(6 / 64)
    for copy in (maps.numpy(), maps.double(), maps.requires_grad_()):
        torch.testing.assert_close(metric(copy, some)[1], metric(maps, some)[1])
    torch.testing.assert_close(metric(maps, some.int().numpy())[1], metric(maps, some)[1])


def test_a_blank_map_points_at_the_share_that_counts():
    _, truth = of_scenes()
    for tolerance in (0, 3, 15):
        share = within(truth, tolerance).flatten(1).float().mean(1)
        torch.testing.assert_close(PointingGame(tolerance)(torch.zeros(truth.shape), truth), share)
        torch.testing.assert_close(PointingGame(tolerance)(torch.full(truth.shape, -2.0), truth), share)


@pytest.mark.parametrize("size", [(40,), (13, 17), (6, 5, 7)], ids=["signal", "picture", "volume"])
@pytest.mark.parametrize("distance", [0, 0.9, 1, 1.5, 2, 5, 15, 1000])
def test_within_is_a_disc(size, distance):
    torch.manual_seed(0)
    masks = torch.rand(3, *size) < 3 / np.prod(size)
    masks[2] = False
    grown = within(masks, distance)
    for mask, got in zip(masks.numpy(), grown.numpy()):
        inside = np.argwhere(mask)
        for p in spread(mask):
            nearest = min((((np.array(p) - q) ** 2).sum() for q in inside), default=np.inf)
            assert got[p] == (nearest <= distance**2), p


def test_ties_of_the_rank_are_what_drawing_lots_gives_on_average():
    torch.manual_seed(0)
    maps, masks = made("tied")
    drawn = torch.stack([RelevanceRank()(maps + 1e-3 * torch.rand(maps.shape), masks) for _ in range(4000)])
    torch.testing.assert_close(drawn.mean(0), RelevanceRank()(maps, masks), rtol=0, atol=5 * drawn.std(0).max().item() / 4000**0.5)


def test_the_best_threshold_is_at_least_any():
    for kind in ("scenes", "smooth", "tied"):
        maps, masks = made(kind)
        for t in np.linspace(0.01, 1, 30):
            assert (BestIoU()(maps, masks) >= IoU(t)(maps, masks) - 1e-6).all()


def test_boxes_are_those_of_the_detectors():
    from torchvision.ops import box_iou

    from gradcam_nb.imaging.regions import to_boxes

    maps, truth = of_scenes()
    places = [mask.nonzero().flip(1) for mask in truth]  # column, row
    wanted = torch.stack([torch.cat([at.amin(0), at.amax(0) + 1]) for at in places]).float()
    for i, got in enumerate(IoU(0.5, box=True)(maps, truth)):
        largest = to_boxes((maps[i] >= 0.5 * maps[i].max()).float())[:1].float()
        assert got.item() == pytest.approx(box_iou(largest, wanted[i : i + 1]).item(), abs=1e-6)


# --- complexity and sparseness


def slow_entropy(m):
    shares = np.abs(m).flatten() / np.abs(m).sum()
    return -sum(p * np.log(p) for p in shares if p > 0)


def slow_gini(m):  # as in the paper: 1 − 2 Σ v_k / ‖v‖ · (d − k + 1/2) / d
    v = np.sort(np.abs(m).flatten())
    d = len(v)
    return 1 - 2 * sum(v[k - 1] / v.sum() * (d - k + 0.5) / d for k in range(1, d + 1))


OF_MAPS = {
    "l1": (Complexity(), lambda m: np.abs(m).mean()),
    "entropy": (Complexity("entropy"), slow_entropy),
    "gini": (Sparseness(), slow_gini),
}


@pytest.mark.parametrize("kind", ["scenes", "noise", "smooth", "tied", "signal", "volume", "signed"])
@pytest.mark.parametrize("name", OF_MAPS)
def test_the_formula_of_the_map_alone(name, kind):
    metric, slow = OF_MAPS[name]
    maps, _ = made(kind)
    got = metric(maps)
    a_number_each(got, len(maps))
    np.testing.assert_allclose(got.numpy(), [slow(m.double().numpy()) for m in maps], rtol=1e-4)
    torch.testing.assert_close(torch.cat([metric(m[None]) for m in maps]), got, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(metric(maps.numpy()), got)


def test_gini_of_a_map_that_is_nearly_constant():
    torch.manual_seed(0)
    maps = (1000 + torch.rand(3, 224, 224)).float()
    v = np.sort(maps.double().numpy().reshape(3, -1))
    n = v.shape[1]
    wanted = ((2 * np.arange(1, n + 1) - n - 1) * v).sum(1) / (n * v.sum(1))
    np.testing.assert_allclose(Sparseness()(maps).numpy(), wanted, rtol=1e-3)


def test_blank_constant_and_single():
    blank, one = torch.zeros(2, 6, 7), torch.zeros(2, 6, 7)
    one[:, 3, 4] = 0.7
    for maps in (blank, blank + 0.3, blank - 2):
        torch.testing.assert_close(Complexity("entropy")(maps), torch.full((2,), 42.0).log())
        torch.testing.assert_close(Sparseness()(maps), torch.zeros(2))
    torch.testing.assert_close(Complexity()(blank), torch.zeros(2))
    torch.testing.assert_close(Complexity("entropy")(one), torch.zeros(2))
    torch.testing.assert_close(Sparseness()(one), torch.full((2,), 1 - 1 / 42))
    assert not Complexity().higher_is_better
    assert not Complexity("entropy").higher_is_better
    assert Sparseness().higher_is_better


# --- other libraries


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["scenes", "noise", "smooth"])
def test_quantus_agrees(kind):
    maps, masks = made(kind)
    for ours, theirs in (
        (PointingGame(0), "PointingGame"),
        (EnergyInside(), "RelevanceMassAccuracy"),
        (EnergyInside(), "AttributionLocalisation"),
        (RelevanceRank(), "RelevanceRankAccuracy"),
    ):
        if kind != "scenes" or theirs != "RelevanceRankAccuracy":  # the zeros of scenes are ties
            close(ours(maps, masks), quantus_says(theirs, maps, masks), atol=1e-5)
    close(Complexity("entropy")(maps), quantus_says("Complexity", maps), atol=1e-5)
    close(Sparseness()(maps), quantus_says("Sparseness", maps), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_quantus_agrees_on_maps_with_a_sign():
    maps, masks = made("signed")
    mass, rank = RelevanceMass("absolute"), RelevanceRank()
    close(mass(maps, masks), quantus_says("RelevanceMassAccuracy", maps, masks, abs=True), atol=1e-5)
    close(rank(maps, masks), quantus_says("RelevanceRankAccuracy", maps, masks), atol=1e-5)
    close(rank(maps.abs(), masks), quantus_says("RelevanceRankAccuracy", maps, masks, abs=True), atol=1e-5)
    for ours, theirs in ((Complexity("entropy"), "Complexity"), (Sparseness(), "Sparseness")):
        close(ours(maps), quantus_says(theirs, maps), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_where_quantus_differs():
    """What the pages say of it: a blank map and an empty mask always hit, ties count as they lie, shares with a sign are anything."""
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, 0], masks[1, 3], masks[2, 1] = True, True, True
    blank = torch.zeros(3, 4, 4)
    blank[2, 1, 1] = 1  # it refuses a batch in which all maps are blank
    assert quantus_says("PointingGame", blank, masks).tolist() == [1, 1, 1]
    assert PointingGame(0)(blank, masks).tolist() == [0.25, 0.25, 1]
    nowhere = torch.zeros_like(masks)
    assert quantus_says("PointingGame", torch.rand(3, 4, 4), nowhere).tolist() == [1, 1, 1]
    assert PointingGame(0)(torch.rand(3, 4, 4), nowhere).isnan().all()
    assert quantus_says("RelevanceMassAccuracy", blank, masks)[:2].isnan().all()
    assert EnergyInside()(blank, masks).tolist() == [0, 0, 1]
    front_and_back = quantus_says("RelevanceRankAccuracy", blank, masks)
    assert front_and_back[0] != front_and_back[1]
    assert RelevanceRank()(blank, masks)[:2].tolist() == [0.25, 0.25]
    assert quantus_says("Complexity", blank)[:2].isnan().all()
    assert Complexity("entropy")(blank)[:2].tolist() == pytest.approx([np.log(16)] * 2)
    assert quantus_says("Sparseness", blank)[:2].tolist() == [0, 0]
    assert Sparseness()(blank)[:2].tolist() == [0, 0]
    pair, first = torch.tensor([[[3.0, -2.0]]]), torch.tensor([[[True, False]]])
    assert quantus_says("RelevanceMassAccuracy", pair, first).item() == pytest.approx(3)
    assert RelevanceMass()(pair, first).item() == 1


def test_pypi_grad_cam_agrees():
    from pytorch_grad_cam.metrics.arcc import Complexity as Theirs

    for kind in ("scenes", "noise", "signed"):
        maps, _ = made(kind)
        np.testing.assert_allclose(Complexity()(maps).numpy(), Theirs()(maps.numpy()), rtol=1e-5)


# --- words


def test_errors_say_what_to_pass():
    maps, masks = made("smooth")
    for call, words in [
        (lambda: PointingGame(-1), "tolerance: got -1; pass pixels, 0 or more"),
        (lambda: PointingGame(float("nan")), "tolerance: got nan"),
        (lambda: RelevanceMass("sum"), "signed: got 'sum'; pass one of positive, absolute, square"),
        (lambda: IoU(20), "threshold: got 20; pass a share of the maximum from 0 to 1"),
        (lambda: Complexity("gini"), "form: got 'gini'; pass 'l1' or 'entropy'"),
        (lambda: EnergyInside()(maps - 1, masks), "cams: has negative values"),
        (lambda: IoU(box=True)(*made("volume")), "cams: got shape (3, 5, 6, 7); boxes are for maps of height and width"),
        (lambda: Complexity()(torch.ones(5)), "cams: got shape (5,); pass heat maps B × spatial"),
        (lambda: Sparseness()(torch.full((1, 3), torch.inf)), "cams: has NaN or infinite values"),
    ]:
        with pytest.raises(ValueError) as error:
            call()
        assert words in str(error.value)
    for metric in (Complexity(), Sparseness()):
        with pytest.raises(TypeError, match="call the method first"):
            metric(lambda x: x)


def test_every_metric_names_its_paper_and_what_misleads():
    for metric, _ in [*METRICS.values(), *OF_MAPS.values()]:
        assert "arXiv" in metric.paper
        assert metric.misleads.endswith(".")
    assert "2005.00631" in Complexity("entropy").paper
    assert "2104.10252" in Complexity().paper
