"""Every method of heat maps that `list_methods` knows, on small networks of each kind: what all of them must keep."""

import copy
from functools import cache, partial

import pytest
import torch
from tiny_models import tiny_vit
from torch import nn
from traces import assert_untouched, traces

from gradcam_nb import BaseCAM, list_methods
from gradcam_nb.core.attention_cam import AttentionCAM
from gradcam_nb.core.heatmap import fuse
from gradcam_nb.core.perturbation import PerturbationCAM

pytestmark = pytest.mark.filterwarnings("ignore:blank heat map")  # a network by chance may have nothing that speaks for a class
FEWER = {  # passes: enough for what is kept here
    "RISE": dict(n_masks=96, cells=3),
    "SSCAM": dict(samples=2),
    "ISCAM": dict(steps=3),
    "OptiCAM": dict(iterations=3),
    "SESS": dict(num_scales=2),
}
DETECTORS = {"DRISE": "its targets are detections: see test_mask_methods.py"}
CLASSES = {name: method for name, method in list_methods().items() if issubclass(method, BaseCAM) and name not in DETECTORS}
METHODS = {}
for name, method in CLASSES.items():
    quiet = dict(progress=False) if issubclass(method, PerturbationCAM) else {}
    METHODS[name] = partial(method, **FEWER.get(name, {}), **quiet)
SIZES = {"1-D": (32,), "2-D": (16, 24), "3-D": (8, 12, 8), "ViT": (32, 48)}
LAYERS = {"1-D": ["fine", "coarse"], "2-D": ["fine", "coarse"], "3-D": ["fine", "coarse"], "ViT": ["blocks.1", "blocks.2.norm1"]}

# Exceptions, each with its reason.
ATTENTION = [name for name, method in CLASSES.items() if issubclass(method, AttentionCAM)]
CANNOT = {}  # and the error says so
for kind in ("1-D", "2-D", "3-D"):
    CANNOT |= {(name, kind): "no attention over all its tokens" for name in ATTENTION}
CANNOT["CAM", "ViT"] = "global average pooling"  # this one reads its class token
CANNOT["SESS", "ViT"] = "does not take patches"  # windows are squares, this one takes 32 × 48
OF_THE_WHOLE = [*ATTENTION, "FullGrad", "RISE"]  # they look at all layers, whatever is given
OWN_FUSION = {
    "CAM": "its weights are those of the last layer only",
    "LayerCAM": "it scales the finer layers: see test_weight_methods.py",
    "SESS": "it fuses in each patch: see test_sess.py",
}

BELOW_ROUNDING = [("ReciproCAM", "ViT")]  # one token of this network moves the score by less than bfloat16 can tell
NO_CHANNELS = [*ATTENTION, "RISE", "ReciproCAM", "OptiCAM"]  # nothing to find a component of

CASES = [pytest.param(name, kind, id=f"{name} {kind}") for name in METHODS for kind in SIZES if (name, kind) not in CANNOT]
each = pytest.mark.parametrize("name, kind", CASES)


class Stages(nn.Module):
    """Convolution, batch norm and in-place ReLU, twice; the mean; a linear layer."""

    def __init__(self, dimensions):
        super().__init__()
        conv, norm = getattr(nn, f"Conv{dimensions}d"), getattr(nn, f"BatchNorm{dimensions}d")
        self.fine = nn.Sequential(conv(3, 8, 3, 2, 1), norm(8), nn.ReLU(inplace=True))
        self.coarse = nn.Sequential(conv(8, 12, 3, 2, 1), norm(12), nn.ReLU(inplace=True))
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        return self.head(self.coarse(self.fine(x)).flatten(2).mean(-1))


@cache
def built(kind):
    torch.manual_seed(0)
    x = torch.randn(3, 3, *SIZES[kind])
    if kind == "ViT":
        model = tiny_vit(*SIZES[kind], depth=3)
        for norm in (m for m in model.modules() if isinstance(m, nn.LayerNorm)):
            nn.init.normal_(norm.weight)  # else all tokens are equally long
    else:
        model = Stages(len(SIZES[kind]))
        model(2 * x + 1)  # statistics of its own
    return model.eval(), x


def made(kind):
    """A network of one's own, three inputs, the top class of each."""
    model, x = built(kind)
    return copy.deepcopy(model), x.clone(), model(x).argmax(1)


@cache
def plain(name, kind):
    """The maps that others are compared with."""
    model, x, top = made(kind)
    return METHODS[name](model)(x, top)


def check(heat, x):
    assert heat.shape == x.shape[:1] + x.shape[2:]
    assert heat.dtype == torch.float32
    assert heat.isfinite().all()
    assert 0 <= heat.min() <= heat.max() <= 1
    assert (heat.flatten(1).amax(1) > 0).sum() >= 2, "more than one of three maps is blank"


def assert_same(heat, expected):
    torch.testing.assert_close(heat, expected, rtol=0, atol=1e-4)


def assert_alike(heat, expected):
    """Two of three pictures, for a number format may tip a threshold or a sign."""
    likeness = [torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item() for a, b in zip(heat, expected)]
    assert sum(r > 0.9 for r in likeness) >= 2, likeness


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_map_a_picture(name, kind, dtype):
    model, x, top = made(kind)
    cam = METHODS[name](model.to(dtype))
    heat = cam(x.to(dtype), top)
    check(heat, x)
    if dtype == torch.float32 or (name, kind) not in BELOW_ROUNDING:
        assert_alike(heat, plain(name, kind))
    with torch.no_grad():
        torch.testing.assert_close(cam.outputs, model(x.to(dtype)), rtol=0, atol=1e-5 if dtype == torch.float32 else 2e-2)


@each
def test_a_batch_is_its_pictures_one_by_one(name, kind):
    model, x, top = made(kind)
    cam = METHODS[name](model)
    assert_same(torch.cat([cam(x[[i]], top[[i]]) for i in range(3)]), plain(name, kind))


@each
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_frozen_in_any_mode_and_without_a_trace(name, kind, mode):
    """All parameters frozen but one, which holds a gradient; all parts in training mode but one."""
    model, x, top = made(kind)
    model.train().requires_grad_(False)
    list(model.children())[1].eval()
    *_, last = model.parameters()
    last.requires_grad_().grad = torch.full_like(last, 7.0)
    before = traces(model)
    with mode():
        enabled = torch.is_grad_enabled()
        heat = METHODS[name](model)(x.clone(), top)
        assert torch.is_grad_enabled() == enabled
    assert_same(heat, plain(name, kind))
    assert not heat.requires_grad
    assert_untouched(model, before)


@pytest.mark.parametrize("fusion", ["mean", "max", "product"])
@pytest.mark.parametrize("name, kind", [case for case in CASES if case.values[0] not in OWN_FUSION])
def test_two_layers(name, kind, fusion):
    model, x, top = made(kind)
    heat = METHODS[name](model, LAYERS[kind])(x, top, fusion=fusion)
    if name in OF_THE_WHOLE:
        return assert_same(heat, METHODS[name](model)(x, top, fusion=fusion))
    assert_same(heat, fuse([METHODS[name](model, layer)(x, top) for layer in LAYERS[kind]], fusion))


@each
def test_smoothed(name, kind):
    model, x, top = made(kind)
    cam = METHODS[name](model)
    check(cam(x, top, aug_smooth=True), x)
    if name not in NO_CHANNELS:
        return check(cam(x, top, eigen_smooth=True), x)
    with pytest.raises(ValueError, match="eigen_smooth"):
        cam(x, top, eigen_smooth=True)


@each
def test_many_targets(name, kind):
    model, x, _ = made(kind)
    cam = METHODS[name](model)
    if cam.uses_targets:
        return assert_same(cam.many(x, [3, 0]), torch.stack([cam(x, 3), cam(x, 0)], 1))
    assert torch.equal(cam(x, 3), cam(x, 0))
    with pytest.raises(ValueError, match="same map for every target"):
        cam.many(x, [3, 0])


@each
def test_autocast(name, kind):
    """The model runs in half precision, the map is computed in float32."""
    model, x, top = made(kind)
    cam = METHODS[name](model)
    with torch.autocast("cpu", torch.bfloat16):
        heat, run = cam(x, top), cam.run(x, top)
    check(heat, x)
    assert_alike(heat, plain(name, kind))
    if CLASSES[name].kind != "perturbation":  # these run the model as they draw
        assert_same(heat, cam.draw(run))


@pytest.mark.parametrize("name, kind", CANNOT)
def test_says_where_it_cannot_work(name, kind):
    model, x, top = made(kind)
    with pytest.raises(ValueError, match=CANNOT[name, kind]):
        METHODS[name](model)(x, top)
