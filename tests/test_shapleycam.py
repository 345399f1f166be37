"""ShapleyCAM against slow forms of its formula: a whole Hessian, and central differences of gradients in float64."""

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torchvision
from oracles import asked, assert_same, assert_untouched, correlation, on_grid, raw_map, raw_maps, weighed
from tiny_models import vgg11
from torch import nn
from torch.utils._pytree import tree_leaves

from gradcam_nb.methods.gradcam import GradCAM
from gradcam_nb.methods.shapleycam import ShapleyCAM
from gradcam_nb.reshape.vit import vit_reshape_transform
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import TEST, scenes
from gradcam_nb.targets.classifier import ClassifierOutputTarget
from gradcam_nb.targets.residual_softmax import ClassifierOutputReST


class Bends(nn.Module):
    """A small net whose score bends with its layers; one of them answers with a tuple."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 3, padding=1)

        def forward(self, x):
            return self.conv(x).tanh(), {"count": 3, "index": torch.arange(len(x))}

    def __init__(self):
        super().__init__()
        self.first, self.act, self.pair, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), self.Pair(), nn.Linear(6, 5)

    def forward(self, x):
        h, more = self.pair(self.act(self.act(self.first(x))))
        return self.head(h.pow(2).mean((2, 3)) * more["count"])


@pytest.fixture(scope="module")
def bends():
    torch.manual_seed(0)
    return Bends().eval(), torch.randn(3, 3, 6, 6)


def rest(y, category):
    """The formula, in numbers: the score and the logarithm of the softmax."""
    return 2 * y[category] - y.exp().sum().log()


def answers(model, layer, x, given=None):
    """What the layer gave, or the class scores as if it had given something else; in the precision of `x`."""
    kept, module = [], model.get_submodule(layer)
    handle = module.register_forward_hook(lambda m, args, out: kept.append(out) or (out if given is None else given))
    try:
        scores = model(x)
    finally:
        handle.remove()
    return scores if given is not None else kept[0].detach()


def by_differences(model, layer, x, category, utility=rest, step=1e-7):
    """A layer's activations and second-order gradients, from gradients a small step to either side along the activations."""
    a = answers(model, layer, x)

    def gradient(at):
        at = at.clone().requires_grad_()
        (found,) = torch.autograd.grad(utility(answers(model, layer, x, at.clone())[0], category), at)
        return found.numpy()

    bend = (gradient(a + step * a) - gradient(a - step * a)) / (2 * step)
    return a.numpy(), gradient(a) - bend / 2


def by_hessian(head, a, category):
    """The same with the whole matrix of second derivatives of a small head."""

    def utility(flat):
        return rest(head(flat.reshape(a.shape)), category)

    flat = a.flatten()
    matrix, slope = torch.func.hessian(utility)(flat), torch.func.grad(utility)(flat)
    assert matrix.abs().max() > 1e-3
    return (slope - matrix @ flat / 2).reshape(a.shape).detach().numpy()


def on_paper(a, g):
    """One weight a channel: the mean of what stands in a gradient's place."""
    return weighed(a, [sum(gradient.ravel()) / gradient.size for gradient in g])


NETWORKS = [("cnn", "layer3"), ("cnn", "layer4"), ("vit", "blocks.5.norm1"), ("vit", "blocks.2")]


@pytest.mark.parametrize("name, layer", NETWORKS)
def test_equals_the_paper_by_differences(name, layer):
    for number in range(2000, 2003):
        model, x, category = asked(name, number)
        ours = raw_map(ShapleyCAM(model, layer), x, category)
        found = by_differences(model.double(), layer, x.double(), category)
        (a,), (g,) = (on_grid(torch.as_tensor(t)).numpy() for t in found)
        assert_same(ours, on_paper(a, g), f"scene {number}")


@pytest.mark.parametrize("utility", ["rest", "score"])
def test_equals_the_paper_on_a_small_net(bends, utility):
    """Every layer, the one with a tuple and both calls of the one that runs twice."""
    model, x = bends
    double, scored = Bends().double().eval(), {"rest": rest, "score": lambda y, category: y[category]}[utility]
    double.load_state_dict(model.state_dict())
    chained = nn.ModuleDict(dict(first=double.first, once=nn.SiLU(), twice=nn.SiLU()))

    def forward(pictures):
        h = double.pair(chained["twice"](chained["once"](chained["first"](pictures))))[0]
        return double.head(h.pow(2).mean((2, 3)) * 3)

    chained.forward = forward
    for i in range(len(x)):
        ours = raw_maps(ShapleyCAM(model, ["first", "act"], utility=utility), x[[i]], i)
        for raw, layer in zip(ours, ("first", "once", "twice"), strict=True):
            a, g = by_differences(chained, layer, x[[i]].double(), i, scored)
            assert_same(raw[0], on_paper(a[0], g[0]), f"picture {i}, {layer}")


def test_equals_the_whole_hessian_where_a_layer_gives_a_tuple(bends):
    model, x = bends
    double = Bends().double().eval()
    double.load_state_dict(model.state_dict())
    for i in range(len(x)):
        a = double.pair(double.act(double.act(double.first(x[[i]].double()))))[0][0].detach()
        g = by_hessian(lambda h: double.head(3 * h.pow(2).mean((1, 2))), a, i)
        assert_same(raw_map(ShapleyCAM(model, "pair"), x[[i]], i), on_paper(a.numpy(), g), f"picture {i}")


def case(name):
    torch.manual_seed(0)
    if name == "vit":
        model = timm.create_model("vit_tiny_patch16_224").eval()
        return SimpleNamespace(model=model, layer="blocks.8.norm1", reshape=vit_reshape_transform)
    build, layer = {"resnet18": (torchvision.models.resnet18, "layer3"), "vgg11": (vgg11, "features.14")}[name]
    return SimpleNamespace(model=build().eval(), layer=layer, reshape=None)


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "vit"])
def test_agrees_with_grad_cam(name):
    """With the same targets. Theirs needs attention that is not fused, and forgets to lay tokens on the picture."""
    package, n, x, classes = pytest.importorskip("pytorch_grad_cam"), case(name), torch.randn(2, 3, 224, 224), [5, 7]
    fused = [m for m in n.model.modules() if getattr(m, "fused_attn", False)]
    ours = ShapleyCAM(n.model, n.layer)(x, classes)
    for m in fused:
        m.fused_attn = False

    class Peer(package.ShapleyCAM):
        def get_cam_image(self, x, layer, targets, activations, gradients, eigen_smooth=False):
            weights = self.get_cam_weights(x, layer, targets, activations, gradients)
            laid = n.reshape(activations) if n.reshape else activations
            return (weights[:, :, None, None] * laid.detach().numpy()).sum(1)

    peer = Peer(n.model, [n.model.get_submodule(n.layer)], n.reshape)
    theirs = peer(x, [package.utils.model_targets.ClassifierOutputReST(c) for c in classes])
    peer.activations_and_grads.gradients.clear()  # else its end fails on them
    for i, (a, b) in enumerate(zip(ours, theirs)):
        assert correlation(a, b) >= 0.999, f"picture {i}"


@pytest.mark.parametrize("layers", ["pair", ["first", "act"], ["act", "pair"]])
def test_batch_equals_one_by_one(bends, layers):
    model, x = bends
    cam = ShapleyCAM(model, layers)
    together = cam(x, [0, 1, 2])
    assert torch.allclose(together, torch.cat([cam(x[[i]], i) for i in range(3)]), atol=1e-4)
    targets = [3, lambda y: y[1] * y[2], 0]
    many = cam.many(x, targets)
    for k, target in enumerate(targets):
        assert torch.allclose(many[:, k], cam(x, target), atol=1e-4), f"target {k}"


def test_two_layers_are_the_mean_of_each(bends):
    model, x = bends
    both = ShapleyCAM(model, ["first", "pair"])(x, 1)
    mean = torch.stack([ShapleyCAM(model, layer)(x, 1) for layer in ("first", "pair")]).mean(0)
    assert torch.allclose(both, mean / mean.flatten(1).amax(1)[:, None, None], atol=1e-4)


def test_a_class_is_a_class_in_every_form(bends):
    model, x = bends
    cam, plain = ShapleyCAM(model, "first"), ShapleyCAM(model, "first", utility="score")
    expected = cam(x, [0, 1, 2])
    forms = {
        "tensor": torch.arange(3),
        "array": np.arange(3),
        "list of tensors": list(torch.arange(3)),
        "list of ClassifierOutputTarget": [ClassifierOutputTarget(i) for i in range(3)],
        "list of ClassifierOutputReST": [ClassifierOutputReST(i) for i in range(3)],
    }
    for form, targets in forms.items():
        assert torch.equal(cam(x, targets), expected), form
    assert torch.equal(cam(x), cam(x, model(x).argmax(1)))
    assert torch.allclose(cam(x, lambda y: y[1]), plain(x, 1), atol=1e-6)
    assert torch.allclose(plain(x, ClassifierOutputReST(1)), cam(x, 1), atol=1e-6)


def test_what_is_no_class_is_said(bends):
    model, x = bends
    cam = ShapleyCAM(model, "first")
    with pytest.raises(TypeError, match="got str"):
        cam(x, "cat")
    with pytest.raises(TypeError, match="got float"):
        cam(x, 1.5)
    with pytest.raises(ValueError, match="pass 0 to 4"):
        cam(x, 5)


def test_changed_copies_are_asked_about_the_plain_pictures_class():
    model, x = load("scenes-cnn"), scenes(3, TEST + 2000).images * 2 - 1
    top = model(x).argmax(1)
    assert (model(-x).argmax(1) != top).any()
    cam, views = ShapleyCAM(model, "layer4"), [(torch.neg, lambda m: m)]
    expected = cam(x, top, aug_smooth=views)
    for targets in (None, ClassifierOutputReST()):
        assert torch.allclose(cam(x, targets, aug_smooth=views), expected, atol=1e-5), targets


def test_where_nothing_bends_it_is_gradcam():
    """A score that is linear behind the layer; a network of ReLUs at any layer."""
    model, x = load("scenes-cnn"), scenes(3, TEST + 2000).images * 2 - 1
    for layer in ("layer4", "layer3", "layer2"):
        assert torch.allclose(ShapleyCAM(model, layer, utility="score")(x, 3), GradCAM(model, layer)(x, 3), atol=1e-5), layer
    silent = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).requires_grad_(False)
    assert torch.equal(ShapleyCAM(silent, "0", utility="score")(x, 3), GradCAM(silent, "0")(x, 3))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_keeps_nothing_of_the_graph(bends, mode, monkeypatch):
    model, x = bends
    cam, graphs, plain = ShapleyCAM(model, ["first", "pair"]), [], torch.autograd.grad
    expected = cam(x, 1)

    def grad(*args, **how):
        found = plain(*args, **how)
        graphs.extend(weakref.ref(t) for t in found if t is not None and t.requires_grad)
        return found

    monkeypatch.setattr(torch.autograd, "grad", grad)
    gc.disable()
    try:
        with mode():
            cam = ShapleyCAM(model, ["first", "pair"])
            run = cam.run(x, 1)
            assert torch.allclose(cam.draw(run), expected, atol=1e-6)
        assert graphs
        assert not any(graph() is not None for graph in graphs)
    finally:
        gc.enable()
    kept = [t for t in tree_leaves([run.record.activations, run.record.gradients]) if isinstance(t, torch.Tensor)]
    assert kept
    assert not any(t.requires_grad for t in kept)
    assert_untouched(model, training=False)
    assert not x.requires_grad
