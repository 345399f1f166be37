"""What tests of metrics share: scenes and the network that knows them, slow forms, Quantus' answers, a model held to what it was."""

from functools import cache

import numpy as np
import pytest
import torch

from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import TEST, scenes

N, SIDE = 4, 128


@cache
def network(name="scenes-cnn"):
    return load(name)


@cache
def pictures(first=TEST + 2000):
    """`N` scenes as the network takes them, the class that is asked for in each, and a mask of where it is."""
    batch = scenes(N, first)
    classes = batch.labels.argmax(1)
    return batch.images * 2 - 1, classes, batch.masks[range(N), classes]


def seeded(*size, seed=0):
    """Random numbers from 0 to 1, the same on each call."""
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))


def input_gradient(model, x, classes):
    """Of the class's score, `B × C × spatial`."""
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf)[range(len(x)), classes].sum(), leaf)[0]


def close(ours, theirs, rtol=1e-4, atol=1e-6):
    """The same numbers, by double precision; says where they are not."""
    ours, theirs = (torch.as_tensor(np.asarray(numbers), dtype=torch.float64) for numbers in (ours, theirs))
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


def a_number_each(numbers, n):
    """What every metric gives: a finite float32 for each picture."""
    assert numbers.shape == (n,), f"shape {tuple(numbers.shape)} for {n} pictures"
    assert numbers.dtype == torch.float32, f"{numbers.dtype}"
    assert numbers.isfinite().all(), f"{numbers.tolist()}"


def one_by_one(metric, x, cams, classes, model, n=N):
    """A metric of the first pictures, each alone; `cams` are maps or a method."""
    alone = [metric(x[[i]], cams if callable(cams) else cams[[i]], classes[i], model) for i in range(n)]
    return torch.cat(alone)


# Slow forms


def in_order(heat):
    """Pixels, most relevant first, ties row by row, by python's own stable sort."""
    flat = heat.double().numpy().ravel()
    return sorted(range(flat.size), key=lambda q: -flat[q])


def correlation(a, b):
    """Two maps, in double precision; 0 where one is constant."""
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


# Quantus


def quantus_says(metric, maps, masks=None, *, x=None, classes=None, call={}, **options):
    """A metric of Quantus, called as its users call it; `call` goes into the call, `options` into the metric."""
    quantus = pytest.importorskip("quantus")
    n, size = len(maps), maps.shape[1:]
    judge = getattr(quantus, metric)(disable_warnings=True, display_progressbar=False, **options)
    with np.errstate(all="ignore"):
        said = judge(
            **{"model": None, **call},
            x_batch=np.zeros((n, 3, *size), np.float32) if x is None else x.numpy(),
            y_batch=np.zeros(n, int) if classes is None else classes.numpy(),
            a_batch=maps[:, None].numpy().copy(),
            s_batch=None if masks is None else masks[:, None].numpy(),
            channel_first=True,
        )
    return torch.tensor(np.array(said, dtype=np.float64)).float()


# A model that is only asked


def state_of(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def untouched(model, state):
    """No number of the model has changed, and nothing hangs on it."""
    for name, t in model.state_dict().items():
        assert torch.equal(t, state[name]), f"{name} has changed"
    for name, p in model.named_parameters():
        assert p.grad is None, f"{name} has a gradient"
    for name, module in model.named_modules():
        assert not module._forward_hooks, f"{name} has a hook"
        assert not module._forward_pre_hooks, f"{name} has a hook"
        assert "forward" not in vars(module), f"{name} has another forward"
