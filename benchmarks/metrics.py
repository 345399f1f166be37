"""ROAD beside PyPI grad-cam's: the whole metric, and the filling of the removed pixels alone."""

from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F

from benchmarks.harness import Case
from benchmarks.network import model_and_input
from gradcam_nb.metrics.faithfulness import ranks
from gradcam_nb.metrics.imputation import NoisyLinearImputer
from gradcam_nb.metrics.road import ROADCombined

PERCENTILES = [20, 40, 60, 80]


def _heat_map(x):
    """Smooth as a class activation map is, and without ties: their threshold would remove another number of pixels."""
    rough = torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(0)).to(x)
    return F.interpolate(rough, size=x.shape[2:], mode="bicubic")[:, 0]


def ours():
    model, x = model_and_input(1)
    return partial(ROADCombined(PERCENTILES, score="raw", progress=False), x, _heat_map(x), 5, model)


def theirs():
    from pytorch_grad_cam.metrics.road import ROADCombined
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, x = model_and_input(1)
    return partial(ROADCombined(PERCENTILES), x, _heat_map(x).cpu().numpy(), [ClassifierOutputTarget(5)], model)


def _kept(x):
    """The pixels that stay: the most relevant of each percentile, and the least relevant."""
    order, kept = ranks(_heat_map(x)), []
    for p in PERCENTILES:
        n = order.numel()
        kept += [order < p / 100 * n, order >= (1 - p / 100) * n]
    return torch.cat(kept)


def our_filling():
    _, x = model_and_input(1)
    return partial(NoisyLinearImputer(), x.expand(2 * len(PERCENTILES), -1, -1, -1), _kept(x))


def their_filling():
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    _, x = model_and_input(1)
    return lambda: [NoisyLinearImputer()(x[0].cpu(), kept.float().cpu()) for kept in _kept(x)]


METRICS = []
if find_spec("pytorch_grad_cam"):
    METRICS = [
        Case("ROADCombined, batch 1", "PyPI grad-cam: ROADCombined", theirs, rounds=3),
        Case("ROADCombined, batch 1", "ROADCombined", ours, 0.35, rounds=3),
        Case("ROAD's filling, batch 1", "PyPI grad-cam: filling", their_filling, rounds=3),
        Case("ROAD's filling, batch 1", "filling", our_filling, 0.1, rounds=3),
    ]
