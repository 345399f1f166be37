"""ROAD and its filling: the system solved directly, PyPI grad-cam's numbers, ties, other kernels; the benchmark's table."""

import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
from oracles_metrics import N, close, input_gradient, network, one_by_one, pictures, seeded
from pytorch_grad_cam.metrics import road as theirs
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import spsolve
from torchvision.transforms.functional import gaussian_blur

from gradcam_nb import GradCAM
from gradcam_nb.metrics.arcc import ARCC
from gradcam_nb.metrics.benchmark import benchmark
from gradcam_nb.metrics.coherency import Coherency
from gradcam_nb.metrics.complexity import Complexity
from gradcam_nb.metrics.drop import DropInConfidence
from gradcam_nb.metrics.energy_inside import EnergyInside
from gradcam_nb.metrics.imputation import NoisyLinearImputer
from gradcam_nb.metrics.multigrid import fill_holes
from gradcam_nb.metrics.road import (
    ROADCombined,
    ROADLeastRelevantFirst,
    ROADLeastRelevantFirstAverage,
    ROADMostRelevantFirst,
    ROADMostRelevantFirstAverage,
)
from gradcam_nb.samples.scenes import TEST


@pytest.fixture(scope="module")
def scene():
    model, (x, classes, _) = network(), pictures(TEST + 3000)
    return model, x, classes, GradCAM(model)(x, classes), input_gradient(model, x, classes).abs().sum(1)


def direct(picture, keep, weights=theirs.neighbors_weights):
    """The sparse system, factorised: the form of the paper's authors."""
    matrix, right = theirs.NoisyLinearImputer.setup_sparse_system(keep.float().numpy(), picture.numpy(), weights)
    filled = picture.flatten(1).clone()
    filled[:, (keep.flatten() == 0)] = torch.tensor(spsolve(csc_matrix(matrix), right), dtype=torch.float).reshape(-1, len(picture)).T
    return filled.view_as(picture)


def kinds(size, n=2):
    rng = torch.Generator().manual_seed(3)
    noise = torch.rand(n, size, size, generator=rng)

    def smooth(side):
        return F.interpolate(torch.rand(n, 1, side, side, generator=rng), size=(size, size), mode="bicubic")[:, 0]

    blob = smooth(6)
    return {
        "noise": noise,
        "blob": blob,
        "grain": smooth(size // 5),
        "rows": blob + (torch.arange(size) % 3 == 0)[:, None],
    }


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("kind", ["noise", "blob", "grain", "rows"])
@pytest.mark.parametrize("size", [61, 224])
def test_filled_pixels_are_those_of_the_direct_solution(kind, share, size):
    picture = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)).clamp(-2.2, 2.7)
    maps = kinds(size)[kind]
    keep = maps > maps.flatten(1).quantile(share, dim=1)[:, None, None]
    filled = fill_holes(picture, keep)
    assert (filled[0] - direct(picture[0], keep[0])).abs().max() < 1e-3
    if size < 100:
        assert (filled[1] - direct(picture[1], keep[1])).abs().max() < 1e-3


@pytest.mark.parametrize(
    "weights",
    [
        [((0, -1), 0.5), ((0, 1), 0.5), ((1, 0), 0.1), ((-1, 0), 0.1)],
        [((2, 0), 1.0), ((-2, 0), 1.0), ((0, 1), 0.3), ((0, -1), 0.3), ((1, 1), 0.2), ((-1, -1), 0.2)],
    ],
    ids=["flat", "far"],
)
def test_other_weights_are_obeyed(weights):
    total = sum(w for _, w in weights)
    normed = [(offset, w / total) for offset, w in weights]
    picture = torch.randn(1, 2, 40, 33, generator=torch.Generator().manual_seed(2))
    keep = seeded(1, 40, 33, seed=4) > 0.6
    wanted = direct(picture[0], keep[0], normed)
    assert (NoisyLinearImputer(0, weights)(picture, keep)[0] - wanted).abs().max() < 1e-3
    assert (NoisyLinearImputer(0)(picture, keep)[0] - wanted).abs().max() > 0.1


@pytest.mark.parametrize("size", [(3, 3), (5, 5), (1, 12), (6, 5), (37,), (5, 6, 7), (2, 2)])
def test_every_size_and_number_of_dimensions(size):
    torch.manual_seed(0)
    picture, keep = torch.rand(3, 2, *size), torch.rand(3, *size) > 0.5
    keep[(slice(None), *[0] * len(size))] = True
    filled = fill_holes(picture, keep)
    kernel = torch.tensor([1.0, 2, 1])
    for _ in size[1:]:
        kernel = kernel[..., None] * torch.tensor([1.0, 2, 1])
    kernel[(1,) * len(size)] = 0
    around = (F.conv1d, F.conv2d, F.conv3d)[len(size) - 1]
    planes = filled.flatten(0, 1)[:, None]
    total, weight = (around(t, kernel[None, None], padding=1) for t in (planes, torch.ones_like(planes)))
    wrong = ((total / weight).view_as(filled) - filled).abs().where(~keep[:, None], 0)
    assert wrong.max() < 2e-3
    assert torch.equal(filled.where(keep[:, None], 0), picture.where(keep[:, None], 0))


def test_hard_cases_stay_finite(scene):
    _, x, _, _, gradient = scene
    for percentile in range(5, 100, 5):
        keep = gradient < gradient.flatten(1).quantile(percentile / 100, dim=1)[:, None, None]
        for some in (keep, ~keep):
            filled = fill_holes(x, some)
            assert filled.isfinite().all()
            assert filled.min() > -1.01
            assert filled.max() < 1.01


OURS = {
    "ROADMostRelevantFirst": (ROADMostRelevantFirst, 75),
    "ROADLeastRelevantFirst": (ROADLeastRelevantFirst, 30),
    "ROADMostRelevantFirstAverage": (ROADMostRelevantFirstAverage, [20, 60]),
    "ROADLeastRelevantFirstAverage": (ROADLeastRelevantFirstAverage, [20, 60]),
    "ROADCombined": (ROADCombined, [20, 40, 60, 80]),
}


@pytest.mark.parametrize("name", OURS)
def test_the_numbers_are_those_of_grad_cam(name, scene, monkeypatch):
    model, x, classes, _, gradient = scene
    monkeypatch.setattr(theirs.NoisyLinearImputer, "__init__", lambda self: setattr(self, "noise", 0))
    kind, percentiles = OURS[name]
    # Their percentile interpolates between two values: a map without ties, and a share that is a whole number of pixels but for one.
    maps = gradient.flatten(1).argsort(1).argsort(1).view_as(gradient) / gradient[0].numel()
    want = getattr(theirs, name)(percentiles)(x[:2], maps[:2].numpy(), [lambda output, c=c: output[c] for c in classes[:2]], model)
    got = kind(percentiles, score="raw", imputer=NoisyLinearImputer(noise=0), progress=False)(x[:2], maps[:2], classes[:2], model)
    assert np.abs(got.numpy() - want).max() < 0.02 * np.abs(want).max()


def test_ties_remove_as_many_pixels_as_were_asked_for(scene):
    """Of a map that is nearly all zero, "the top 10 %" are 10 %, not everything."""
    model, x, classes, _, _ = scene
    sparse = torch.zeros(N, 128, 128)
    sparse[:, 40:72, 40:72] = torch.rand(N, 32, 32) + 0.1
    _, shown = ROADMostRelevantFirst(90, imputer=lambda pictures, keep: pictures * 0 + ~keep[:, None], progress=False)(
        x, sparse, classes, model, return_visualization=True
    )
    assert (shown.mean((1, 2, 3)) - 0.1).abs().max() < 1e-3
    assert (shown[:, 0] * sparse > 0).sum() == (sparse > 0).sum()
    kept = np.float32(sparse[0].numpy() < np.percentile(sparse[0].numpy(), 90))
    assert kept.mean() == 0, "grad-cam's threshold removes the whole picture"


def test_auto_removes_what_is_relevant(scene):
    """Most relevant first, "auto" removes what is above the threshold, and least relevant first what is below it."""
    model, x, classes, heat, _ = scene
    most, least = (
        kind("auto", score="sigmoid", progress=False)(x, heat, classes, model) for kind in (ROADMostRelevantFirst, ROADLeastRelevantFirst)
    )
    assert (most < least).all()
    theirs_most = theirs.ROADMostRelevantFirst("auto")(x, heat.numpy(), [lambda output, c=c: output[c].sigmoid() for c in classes], model)
    assert theirs_most.mean() > most.mean().item() + 0.3, "grad-cam removes the rest"


def test_removal_rewards_blur_and_says_so(scene):
    """Blur adds no information and raises ROAD; `benchmark` warns."""
    model, x, classes, _, _ = scene
    single = (input_gradient(model, x, classes) * x).sum(1).clamp(min=0)
    sharp, blurred = (
        ROADCombined([20, 40, 60, 80], score="sigmoid", progress=False)(x, maps, classes, model).mean()
        for maps in (single, gaussian_blur(single, 31, 5.0))
    )
    assert blurred > 2 * sharp
    assert "2304.13836" in ROADCombined.misleads


def test_drop_is_relative_and_arcc_is_a_harmonic_mean(scene):
    """The drop is the share of the score that is lost; ARCC's parts are coherency, 1 − complexity and twice ROAD."""
    model, x, classes, heat, _ = scene
    with torch.no_grad():
        before, after = (model(t).softmax(-1)[range(N), classes] for t in (x, x * heat[:, None]))
    close(DropInConfidence(progress=False)(x, heat, classes, model), (before - after).clamp(min=0) / before, rtol=1e-5, atol=1e-5)
    close(DropInConfidence(relative=False, progress=False)(x, heat, classes, model), (before - after).clamp(min=0), rtol=1e-5, atol=1e-5)
    parts = [
        Coherency(progress=False)(x, GradCAM(model), classes, model),
        1 - Complexity()(heat),
        (2 * ROADCombined([20, 40, 60, 80], progress=False)(x, heat, classes, model)).clamp(0, 1),
    ]
    want = 3 / sum(1 / part for part in parts)
    close(ARCC(progress=False)(x, GradCAM(model), classes, model), want, rtol=1e-2, atol=1e-3)


def test_one_number_is_the_same_alone_and_in_a_batch_and_again(scene):
    model, x, classes, heat, _ = scene
    metric = ROADCombined([30, 60], progress=False)
    whole = metric(x, heat, classes, model)
    assert torch.equal(whole, metric(x, heat, classes, model))
    assert (whole - one_by_one(metric, x, heat, classes, model)).abs().max() < 1e-3


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_it_stays_on_the_gpu(scene):
    model, x, classes, heat, _ = scene
    want = ROADCombined([30, 60], progress=False)(x, heat, classes, model)
    try:
        got = ROADCombined([30, 60], progress=False)(x.cuda(), heat.cuda(), classes, model.cuda())
    finally:
        model.cpu()
    assert got.is_cuda
    assert (got.cpu() - want).abs().max() < 1e-2


def test_a_benchmark_that_was_cut_off_in_a_line_goes_on(scene, tmp_path):
    model, x, classes, _, _ = scene
    data = [(x[:2], classes[:2], torch.ones(2, 128, 128)), (x[2:], classes[2:], torch.ones(2, 128, 128))]
    want = benchmark(GradCAM, EnergyInside(), model, data, folder=tmp_path, progress=False)
    stored = (tmp_path / "values.csv").read_text()
    (tmp_path / "values.csv").write_text(stored[: len(stored) * 2 // 3])
    again = benchmark(GradCAM, EnergyInside(), model, data, folder=tmp_path, progress=False)
    pandas.testing.assert_frame_equal(want, again)
    assert (tmp_path / "table.png").stat().st_size > 1000
    read = pandas.read_csv(tmp_path / "table.csv", index_col=0)
    assert abs(read.loc["GradCAM"].item() - 1) < 1e-6


def test_a_benchmark_warns_of_metrics_that_mislead(scene):
    model, x, classes, _, _ = scene
    with pytest.warns(UserWarning, match="Blurring a map adds no information"):
        benchmark(GradCAM, ROADCombined([50], progress=False), model, [(x, classes)], progress=False)
