"""First components, FEM, CAM and FinerCAM against their formulas in plain numpy, and against scikit-learn."""

import numpy as np
import pytest
import torch
import torchvision
from oracles import as_numpy, asked, assert_same, graph, heat_map, raw_map, weighed
from tiny_models import vgg11

from gradcam_nb.methods.cam import CAM
from gradcam_nb.methods.eigen_gradcam import EigenGradCAM
from gradcam_nb.methods.eigencam import EigenCAM
from gradcam_nb.methods.fem import FEM
from gradcam_nb.methods.finercam import FinerCAM, FinerTarget
from gradcam_nb.methods.gradcam import GradCAM
from gradcam_nb.methods.kpca_cam import KPCA_CAM
from gradcam_nb.methods.seg_eigencam import SegEigenCAM
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import TEST, scenes

NETS = [("cnn", "layer4"), ("vit", "blocks.5.norm1")]


def seen(name, layer):
    """A network, a scene, a class that is there; the layer's activations and the class score's gradients."""
    model, x, category = asked(name)
    (a,), (g,) = graph(model, layer, x, lambda output: output[0, category])
    return model, x, category, a, g


def component(features, like=None):
    """The first principal component by a full decomposition, with the sign that agrees with `like`."""
    rows = features.reshape(len(features), -1).T
    rows = rows - rows.mean(0)
    u, s, _ = np.linalg.svd(rows, full_matrices=False)
    flat = u[:, 0] * s[0]
    if like is None:  # the farthest value from zero is positive
        flat = flat if flat.max() >= -flat.min() else -flat
    else:
        flat = flat * np.sign(np.sum(flat * (like - like.mean()).ravel()))
    return flat.reshape(features.shape[1:])


def strength(activations):
    """Each place's magnitude; where something is negative, its distance from the mean place."""
    if activations.min() >= 0:
        return np.sqrt(np.sum(activations**2, axis=0))
    mean = activations.mean(tuple(range(1, activations.ndim)), keepdims=True)
    return np.sqrt(np.sum((activations - mean) ** 2, axis=0))


def kernel_component(activations, kernel):
    """Kernel PCA, one pair of places at a time."""
    rows = activations.reshape(len(activations), -1).T
    rows, gamma = rows - rows.mean(0), 1 / len(activations)
    ways = {
        "sigmoid": lambda a, b: np.tanh(gamma * a @ b + 1),
        "rbf": lambda a, b: np.exp(-gamma * np.sum((a - b) ** 2)),
        "linear": lambda a, b: a @ b,
    }
    places = len(rows)
    alike = np.array([[ways[kernel](a, b) for b in rows] for a in rows])
    centring = np.eye(places) - np.ones((places, places)) / places
    values, vectors = np.linalg.eigh(centring @ alike @ centring)
    flat = vectors[:, -1] * np.sqrt(values[-1])
    like = strength(activations).ravel()
    return (flat * np.sign(flat @ (like - like.mean()))).reshape(activations.shape[1:])


def by_fem(activations, k, form):
    raw = np.zeros(activations.shape[1:])
    for channel in activations:
        strong = channel > channel.mean() + k * np.sqrt(np.mean((channel - channel.mean()) ** 2))
        raw += channel.mean() * strong if form == "mean" else strong.mean() * channel
    return raw


@pytest.mark.parametrize("name, layer", NETS)
def test_eigencam(name, layer):
    model, x, _, a, _ = seen(name, layer)
    assert_same(raw_map(EigenCAM(model, layer), x), component(a, strength(a)))


@pytest.mark.parametrize("method", [EigenCAM, KPCA_CAM])
@pytest.mark.parametrize("layer", ["blocks.3", "blocks.5.norm1"])
def test_the_sign_finds_the_objects_in_a_transformer(method, layer):
    """A token's own length says little there: by it, the peak is on an object in at most a quarter of the maps."""
    batch = scenes(40, TEST + 2000)
    heats = method(load("scenes-vit"), layer)((batch.images - 0.5) / 0.5).flatten(1)
    assert batch.masks.any(1).flatten(1).gather(1, heats.argmax(1, keepdim=True)).float().mean() > 0.6


@pytest.mark.parametrize("name, layer", NETS)
def test_eigen_gradcam(name, layer):
    model, x, category, a, g = seen(name, layer)
    assert_same(raw_map(EigenGradCAM(model, layer), x, category), component(g * a, (g * a).sum(0)))


@pytest.mark.parametrize("kernel", ["sigmoid", "rbf", "linear"])
@pytest.mark.parametrize("name, layer", NETS)
def test_kpca_cam(name, layer, kernel):
    model, x, _, a, _ = seen(name, layer)
    assert_same(raw_map(KPCA_CAM(model, layer, kernel=kernel), x), kernel_component(a, kernel))


@pytest.mark.parametrize("kernel, gamma", [("sigmoid", None), ("sigmoid", 0.02), ("rbf", None), ("linear", None)])
def test_kpca_cam_agrees_with_scikit_learn(kernel, gamma):
    decomposition = pytest.importorskip("sklearn.decomposition")
    model, x, _, a, _ = seen("cnn", "layer4")
    rows = a.reshape(len(a), -1).T
    theirs = decomposition.KernelPCA(1, kernel=kernel, gamma=gamma).fit_transform(rows - rows.mean(0)).reshape(a.shape[1:])
    ours = raw_map(KPCA_CAM(model, "layer4", kernel=kernel, gamma=gamma), x)
    assert_same(ours, theirs * np.sign((ours * theirs).sum()))


@pytest.mark.parametrize("name, layer", NETS)
def test_seg_eigencam(name, layer):
    model, x, category, a, g = seen(name, layer)
    assert_same(raw_map(SegEigenCAM(model, layer), x, category), component(np.abs(g) * a))


@pytest.mark.parametrize("form", ["mean", "share"])
@pytest.mark.parametrize("name, layer", NETS)
def test_fem(name, layer, form):
    model, x, _, a, _ = seen(name, layer)
    assert_same(raw_map(FEM(model, layer, k=1.5, form=form), x), by_fem(a, 1.5, form))


def test_cam():
    model, x, category, a, g = seen("cnn", "layer4")
    weights, bias = as_numpy(model.fc.weight[category]), model.fc.bias[category].item()
    slow = weighed(a, weights)
    assert_same(CAM(model, "layer4")(x, category)[0].numpy(), heat_map(slow, 128))
    assert abs(slow.mean() + bias - model(x)[0, category].item()) < 1e-4, "the map's mean and the bias are not the score"
    # GradCAM's weights are these, up to a factor.
    assert_same(g * a[0].size, np.broadcast_to(weights[:, None, None], a.shape), "the gradients")


def test_cam_is_gradcam_where_it_works():
    model, batch = load("scenes-cnn"), scenes(32, TEST + 2000)
    x, targets = (batch.images - 0.5) / 0.5, batch.labels.argmax(1)
    assert torch.allclose(CAM(model, "layer4")(x, targets), GradCAM(model, "layer4")(x, targets), atol=1e-5)
    resnet = torchvision.models.resnet18().eval()
    x = torch.randn(2, 3, 96, 96)
    assert torch.allclose(CAM(resnet, "layer4")(x, [5, 7]), GradCAM(resnet, "layer4")(x, [5, 7]), atol=1e-4)


def test_cam_says_where_it_cannot_work():
    x = torch.randn(1, 3, 64, 64)
    with pytest.raises(ValueError, match="no linear layer that takes 512 channels"):
        CAM(vgg11().eval(), "features.19")(x)
    with pytest.raises(ValueError, match="in front of the global average pooling"):  # class token: the head fits, but not behind a mean
        CAM(load("scenes-vit"), "blocks.5.norm1")(torch.randn(1, 3, 128, 128))
    with pytest.raises(ValueError, match="pass a class index"):
        CAM(load("scenes-cnn"), "layer4")(torch.randn(1, 3, 128, 128), lambda output: output.sum())


@pytest.mark.parametrize("weighting", ["mean", "softmax"])
@pytest.mark.parametrize("name, layer", NETS)
def test_finercam(name, layer, weighting):
    model, x, category = asked(name)
    scores = as_numpy(model(x)[0])
    nearest = np.argsort(np.abs(scores - scores[category]))
    others = [c for c in nearest if c != category][:3]

    def difference(output):
        """The weights written out, their gradient with them."""
        probabilities = output[0].softmax(0)
        v = [probabilities[c] if weighting == "softmax" else 1 for c in others]
        return sum(w * (output[0, category] - 0.7 * output[0, c]) for w, c in zip(v, others)) / sum(v)

    (a,), (g,) = graph(model, layer, x, difference)
    cam = FinerCAM(model, layer, gamma=0.7, weighting=weighting)
    run = cam.run(x, category)
    (call,) = run.calls(run.layers[0])
    assert_same(cam.base.get_layer_map(run, call)[0].numpy(), weighed(a, [gradient.mean() for gradient in g]))
    target = FinerTarget(category, 0.7, weighting=weighting)
    assert abs(target(torch.tensor(scores)).item() - difference(torch.tensor(scores)[None]).item()) < 1e-4
    assert set(run.targets[0].comparisons) == set(others)


def test_finercam_asks_changed_copies_the_same():
    """Where a changed copy has another top class and other near scores, the plain picture's are compared all the same."""
    model, batch = load("scenes-cnn"), scenes(4, TEST + 2000)
    x, negate = batch.images * 2 - 1, (lambda t: -t, lambda m: m)
    assert (model(-x).argmax(1) != model(x).argmax(1)).any()
    cam = FinerCAM(model, "layer4")
    named = cam.run(x).targets
    assert torch.allclose(cam(x, aug_smooth=[negate]), cam(x, named, aug_smooth=[negate]), atol=1e-5)
