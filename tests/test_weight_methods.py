"""Methods that weigh a layer's channels, against their formulas in plain numpy."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from gradcam_nb.core.heatmap import normalize
from gradcam_nb.methods.gradcam_elementwise import GradCAMElementWise
from gradcam_nb.methods.gradcam_plusplus import GradCAMPlusPlus
from gradcam_nb.methods.hirescam import HiResCAM
from gradcam_nb.methods.layercam import LayerCAM, scale
from gradcam_nb.methods.random_cam import RandomCAM
from gradcam_nb.methods.smooth_gradcam_plusplus import SmoothGradCAMPlusPlus
from gradcam_nb.methods.xgradcam import XGradCAM
from gradcam_nb.reshape.vit import vit_reshape_transform
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import TEST, scenes
from gradcam_nb.smoothing.noise import noisy

METHODS = [HiResCAM, GradCAMElementWise, LayerCAM, XGradCAM, GradCAMPlusPlus, SmoothGradCAMPlusPlus, RandomCAM]
WITH_GRADIENTS = METHODS[:-1]


def places(a):
    return list(np.ndindex(a.shape[1:]))


def hirescam(a, g):
    raw = np.zeros(a.shape[1:])
    for p in places(a):
        raw[p] = sum(g[(k, *p)] * a[(k, *p)] for k in range(len(a)))
    return raw


def elementwise(a, g):
    raw = np.zeros(a.shape[1:])
    for p in places(a):
        raw[p] = sum(max(0.0, g[(k, *p)] * a[(k, *p)]) for k in range(len(a)))
    return raw


def layercam(a, g):
    raw = np.zeros(a.shape[1:])
    for p in places(a):
        raw[p] = sum(max(0.0, g[(k, *p)]) * a[(k, *p)] for k in range(len(a)))
    return raw


def weighed(a, weights):
    return sum(w * channel for w, channel in zip(weights, a))


def xgradcam(a, g):
    """Each place's share of all that the channel says, whatever its sign."""
    shares = [sum(abs(a[(k, *p)]) for p in places(a)) for k in range(len(a))]
    return weighed(a, [sum(abs(a[(k, *p)]) * g[(k, *p)] for p in places(a)) / shares[k] if shares[k] else 0.0 for k in range(len(a))])


def plusplus(a, first, second=None, third=None):
    """The paper's fractions as they stand; with means of powers, the smooth method's."""
    second, third = first**2 if second is None else second, first**3 if third is None else third
    weights = []
    for k in range(len(a)):
        total, weight = sum(a[(k, *p)] for p in places(a)), 0.0
        for p in places(a):
            below = 2 * second[(k, *p)] + total * third[(k, *p)]
            weight += max(0.0, first[(k, *p)]) * (second[(k, *p)] / below if below else 0.0)
        weights.append(weight)
    return weighed(a, weights)


ON_PAPER = {HiResCAM: hirescam, GradCAMElementWise: elementwise, LayerCAM: layercam, XGradCAM: xgradcam, GradCAMPlusPlus: plusplus}
NETWORKS = [("cnn", "layer4"), ("vit", "blocks.5.norm1")]


def graph(name, layer, x, category):
    """A network's activations and gradients from plain autograd, in float64."""
    model, kept = load(f"scenes-{name}").double(), []
    handle = model.get_submodule(layer).register_forward_hook(lambda m, a, o: (kept.append(o), o.clone())[1])
    output = model(x.double())
    handle.remove()
    (gradient,) = torch.autograd.grad(output[:, category].sum(), kept[0])
    laid = vit_reshape_transform if name == "vit" else lambda t: t
    return laid(kept[0]).detach().numpy(), laid(gradient).numpy()


def raw_map(cam, x, category):
    (call,) = (run := cam.run(x, category)).calls(run.layers[0])
    return cam.get_cam_image(call.activations, call.gradients)[0].numpy()


def assert_same(ours, paper):
    assert np.abs(ours - paper).max() < 1e-4 * np.abs(paper).max()


@pytest.mark.parametrize("name, layer", NETWORKS)
@pytest.mark.parametrize("method", ON_PAPER)
def test_equals_the_paper_in_numpy(method, name, layer):
    batch = scenes(3, TEST + 2000)
    for x, labels in zip(batch.images * 2 - 1, batch.labels):
        category = labels.argmax().item()
        a, g = graph(name, layer, x[None], category)
        assert_same(raw_map(method(load(f"scenes-{name}"), layer), x[None], category), ON_PAPER[method](a[0], g[0]))


@pytest.mark.parametrize("name, layer", [*NETWORKS, ("cnn", "layer3")])
def test_smooth_equals_the_paper_in_numpy(name, layer):
    batch = scenes(1, TEST + 2000)
    x, category = batch.images * 2 - 1, batch.labels[0].argmax().item()
    a, _ = graph(name, layer, x, category)
    _, g = graph(name, layer, torch.cat([change(x) for change, _ in noisy(5, 0.15, 3)]), category)
    cam = SmoothGradCAMPlusPlus(load(f"scenes-{name}"), layer, samples=5, sigma=0.15, seed=3, batch_size=2)
    assert_same(raw_map(cam, x, category), plusplus(a[0], *((g**n).mean(0) for n in (1, 2, 3))))


@pytest.mark.parametrize("name, layer", NETWORKS)
def test_random_in_numpy(name, layer):
    """No paper: each channel times a number drawn from -1 to 1."""
    batch = scenes(1, TEST + 2000)
    x = batch.images * 2 - 1
    (a, *_), _ = graph(name, layer, x, 0)
    draws = 2 * torch.rand(len(a), generator=torch.Generator().manual_seed(4)).double().numpy() - 1
    assert_same(raw_map(RandomCAM(load(f"scenes-{name}"), layer, seed=4), x, 0), weighed(a, draws))


def hits(cam, batch):
    """How often the peak lies on the object asked for."""
    shown, asked = batch.labels.nonzero(as_tuple=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peaks = cam((batch.images * 2 - 1)[shown], asked).flatten(1).argmax(1)
    return batch.masks[shown, asked].flatten(1)[torch.arange(len(shown)), peaks].float().mean().item()


def test_xgradcam_where_channels_cancel_out():
    """The paper's signed sum fails at a transformer's layer; the share of what the channel says does not."""

    class Signed(XGradCAM):
        def get_cam_weights(self, activations, gradients):
            return (activations * gradients).flatten(2).sum(-1) / activations.flatten(2).sum(-1)

    batch, model = scenes(40, TEST + 2000), load("scenes-vit")
    assert hits(XGradCAM(model, "blocks.5.norm1"), batch) > hits(Signed(model, "blocks.5.norm1"), batch) + 0.15


def test_plusplus_where_the_denominator_is_zero():
    a, g = torch.full((1, 1, 2), -1.0), torch.tensor([[[1.0, 0.5]]])  # the sum is -2: 2 + S g is 0 and 1
    assert torch.equal(GradCAMPlusPlus(nn.Identity()).get_cam_weights(a, g), torch.tensor([[0.5]]))


@pytest.mark.parametrize("fusion", ["mean", "max", "product"])
def test_layercam_scales_the_finer_layers(fusion):
    batch, model = scenes(3, TEST + 2000), load("scenes-cnn")
    x, classes = batch.images * 2 - 1, batch.labels.argmax(1)
    fine, coarse = (LayerCAM(model, layer)(x, classes) for layer in ("layer2", "layer4"))
    both = torch.stack([(2 * fine).tanh(), coarse])
    expected = normalize({"mean": both.mean(0), "max": both.amax(0), "product": both.prod(0)}[fusion])
    for layers in (["layer2", "layer4"], ["layer4", "layer2"]):
        assert torch.allclose(LayerCAM(model, layers)(x, classes, fusion=fusion), expected, atol=1e-5)
    assert torch.allclose(
        LayerCAM(model, ["layer2", "layer4"]).many(x, [3], fusion=fusion)[:, 0],
        LayerCAM(model, ["layer2", "layer4"])(x, 3, fusion=fusion),
        atol=1e-4,
    )
    with pytest.raises(ValueError, match="gamma"):
        scale(fine, 0)


def test_random_is_seeded_and_apart_from_the_batch():
    batch, model = scenes(3, TEST + 2000), load("scenes-cnn")
    x = batch.images * 2 - 1
    heats = RandomCAM(model, "layer4")(x)
    assert torch.equal(RandomCAM(model, "layer4")(x), heats)
    assert not torch.allclose(RandomCAM(model, "layer4", seed=1)(x), heats, atol=0.1)
    assert torch.allclose(RandomCAM(model, "layer4")(x[[2]])[0], heats[2], atol=1e-5)


def test_all_beat_chance():
    batch, model = scenes(20, TEST + 2000), load("scenes-cnn")
    chance = np.mean([hits(RandomCAM(model, "layer4", seed=seed), batch) for seed in range(4)])
    assert all(hits(method(model, "layer4"), batch) > 0.9 for method in WITH_GRADIENTS) and chance < 0.4
    # An inner stage is where a weight for each place pays.
    assert all(hits(method(model, "layer2"), batch) > 0.8 for method in (HiResCAM, GradCAMElementWise, LayerCAM))


@pytest.mark.parametrize("method", METHODS)
def test_zero_gradients_and_activations_make_no_nan(method):
    torch.manual_seed(0)
    cam, a = method(nn.Identity()), torch.randn(2, 4, 5, 5)
    a[0] = 0
    for g in (torch.zeros(2, 4, 5, 5), torch.randn(2, 4, 5, 5)):
        powers = torch.stack([g, g**2, g**3], 1) if method is SmoothGradCAMPlusPlus else g
        image = cam.get_cam_image(a, powers)
        assert image.isfinite().all() and not image[0].any()
        assert method is RandomCAM or g.any() or not image.any()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("method", METHODS)
def test_on_the_gpu(method):
    batch, model = scenes(4, TEST + 2000), load("scenes-cnn")
    x, classes = batch.images * 2 - 1, batch.labels.argmax(1)
    expected = method(model, "layer4")(x, classes)
    heat = method(model.cuda(), "layer4")(x.cuda(), classes)
    assert heat.is_cuda and torch.allclose(heat.cpu(), expected, atol=1e-2)
