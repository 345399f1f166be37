"""Methods that weigh a layer's channels, against their formulas in plain numpy."""

import numpy as np
import pytest
import torch
from oracles import asked, assert_same, graph, plusplus_weights, raw_map, share_of_hits, weighed
from torch import nn

from gradcam_nb.core.heatmap import normalize
from gradcam_nb.methods.gradcam_elementwise import GradCAMElementWise
from gradcam_nb.methods.gradcam_plusplus import GradCAMPlusPlus
from gradcam_nb.methods.hirescam import HiResCAM
from gradcam_nb.methods.layercam import LayerCAM, scale
from gradcam_nb.methods.random_cam import RandomCAM
from gradcam_nb.methods.smooth_gradcam_plusplus import SmoothGradCAMPlusPlus
from gradcam_nb.methods.xgradcam import XGradCAM
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import TEST, scenes
from gradcam_nb.smoothing.noise import noisy

METHODS = [HiResCAM, GradCAMElementWise, LayerCAM, XGradCAM, GradCAMPlusPlus, SmoothGradCAMPlusPlus, RandomCAM]
WITH_GRADIENTS = METHODS[:-1]


def place_by_place(a, g, product):
    """A map whose places are sums over the channels of something made of one activation and its gradient."""
    raw = np.zeros(a.shape[1:])
    for place in np.ndindex(raw.shape):
        raw[place] = sum(product(a[(k, *place)], g[(k, *place)]) for k in range(len(a)))
    return raw


def hirescam(a, g):
    return place_by_place(a, g, lambda activation, gradient: gradient * activation)


def elementwise(a, g):
    return place_by_place(a, g, lambda activation, gradient: max(0.0, gradient * activation))


def layercam(a, g):
    return place_by_place(a, g, lambda activation, gradient: max(0.0, gradient) * activation)


def xgradcam(a, g):
    """Each place's share of all that the channel says, whatever its sign."""
    weights = []
    for channel, gradient in zip(a, g):
        said = sum(abs(value) for value in channel.ravel())
        weights.append(sum(abs(channel[p]) * gradient[p] for p in np.ndindex(channel.shape)) / said if said else 0.0)
    return weighed(a, weights)


def plusplus(a, g):
    return weighed(a, plusplus_weights(a, g))


ON_PAPER = {HiResCAM: hirescam, GradCAMElementWise: elementwise, LayerCAM: layercam, XGradCAM: xgradcam, GradCAMPlusPlus: plusplus}
NETWORKS = [("cnn", "layer4"), ("vit", "blocks.5.norm1")]


def exact_graph(name, layer, x, category):
    """A network's activations and gradients in float64."""
    return graph(load(f"scenes-{name}").double(), layer, x.double(), lambda output: output[:, category].sum())


@pytest.mark.parametrize("name, layer", NETWORKS)
@pytest.mark.parametrize("method", ON_PAPER)
def test_equals_the_paper_in_numpy(method, name, layer):
    for number in range(2000, 2003):
        model, x, category = asked(name, number)
        (a,), (g,) = exact_graph(name, layer, x, category)
        assert_same(raw_map(method(model, layer), x, category), ON_PAPER[method](a, g), f"scene {number}")


@pytest.mark.parametrize("name, layer", [*NETWORKS, ("cnn", "layer3")])
def test_smooth_equals_the_paper_in_numpy(name, layer):
    model, x, category = asked(name, 2000)
    (a,), _ = exact_graph(name, layer, x, category)
    copies = torch.cat([change(x) for change, _ in noisy(5, 0.15, 3)])
    _, g = exact_graph(name, layer, copies, category)
    cam = SmoothGradCAMPlusPlus(model, layer, samples=5, sigma=0.15, seed=3, batch_size=2)
    means = [(g**power).mean(0) for power in (1, 2, 3)]
    assert_same(raw_map(cam, x, category), weighed(a, plusplus_weights(a, *means)))


@pytest.mark.parametrize("name, layer", NETWORKS)
def test_random_in_numpy(name, layer):
    """No paper: each channel times a number drawn from -1 to 1."""
    model, x, _ = asked(name, 2000)
    (a,), _ = exact_graph(name, layer, x, 0)
    draws = 2 * torch.rand(len(a), generator=torch.Generator().manual_seed(4)).double().numpy() - 1
    assert_same(raw_map(RandomCAM(model, layer, seed=4), x, 0), weighed(a, draws))


def test_xgradcam_where_channels_cancel_out():
    """The paper's signed sum fails at a transformer's layer; the share of what the channel says does not."""

    class Signed(XGradCAM):
        def get_cam_weights(self, activations, gradients):
            return (activations * gradients).flatten(2).sum(-1) / activations.flatten(2).sum(-1)

    batch, model = scenes(40, TEST + 2000), load("scenes-vit")
    ours, signed = (share_of_hits(method(model, "blocks.5.norm1"), batch) for method in (XGradCAM, Signed))
    assert ours > signed + 0.15


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
        assert torch.allclose(LayerCAM(model, layers)(x, classes, fusion=fusion), expected, atol=1e-5), layers
    cam = LayerCAM(model, ["layer2", "layer4"])
    assert torch.allclose(cam.many(x, [3], fusion=fusion)[:, 0], cam(x, 3, fusion=fusion), atol=1e-4)


def test_scale_takes_a_positive_gamma():
    with pytest.raises(ValueError, match="gamma"):
        scale(torch.rand(1, 4, 4), 0)


def test_random_is_seeded_and_apart_from_the_batch():
    batch, model = scenes(3, TEST + 2000), load("scenes-cnn")
    x = batch.images * 2 - 1
    heats = RandomCAM(model, "layer4")(x)
    assert torch.equal(RandomCAM(model, "layer4")(x), heats)
    assert not torch.allclose(RandomCAM(model, "layer4", seed=1)(x), heats, atol=0.1)
    assert torch.allclose(RandomCAM(model, "layer4")(x[[2]])[0], heats[2], atol=1e-5)


def test_all_beat_chance():
    batch, model = scenes(20, TEST + 2000), load("scenes-cnn")
    assert np.mean([share_of_hits(RandomCAM(model, "layer4", seed=seed), batch) for seed in range(4)]) < 0.4
    for method in WITH_GRADIENTS:
        assert share_of_hits(method(model, "layer4"), batch) > 0.9, method.__name__
    # An inner stage is where a weight for each place pays.
    for method in (HiResCAM, GradCAMElementWise, LayerCAM):
        assert share_of_hits(method(model, "layer2"), batch) > 0.8, method.__name__


@pytest.mark.parametrize("method", METHODS)
def test_zero_gradients_and_activations_make_no_nan(method):
    torch.manual_seed(0)
    cam, a = method(nn.Identity()), torch.randn(2, 4, 5, 5)
    a[0] = 0
    for kind, g in (("zero", torch.zeros(2, 4, 5, 5)), ("random", torch.randn(2, 4, 5, 5))):
        powers = torch.stack([g, g**2, g**3], 1) if method is SmoothGradCAMPlusPlus else g
        image = cam.get_cam_image(a, powers)
        assert image.isfinite().all(), f"gradients: {kind}"
        assert not image[0].any(), f"gradients: {kind}"  # the picture whose activations are zero
        if kind == "zero" and method is not RandomCAM:
            assert not image.any()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("method", METHODS)
def test_on_the_gpu(method):
    batch, model = scenes(4, TEST + 2000), load("scenes-cnn")
    x, classes = batch.images * 2 - 1, batch.labels.argmax(1)
    expected = method(model, "layer4")(x, classes)
    heat = method(model.cuda(), "layer4")(x.cuda(), classes)
    assert heat.is_cuda
    assert torch.allclose(heat.cpu(), expected, atol=1e-2)
