"""First components, FEM, CAM and FinerCAM against their formulas in plain numpy, against scikit-learn and PyPI grad-cam."""
import numpy as np
import pytest
import timm
import torch
import torchvision

from gradcam_nb import ClassifierOutputTarget, record, vit_reshape_transform
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
PEERS = {
    "resnet18": (torchvision.models.resnet18, "layer4", None),
    "vgg11": (torchvision.models.vgg11, "features.19", None),
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224"), "blocks.11.norm1", vit_reshape_transform),
}


def seen(name, layer, score=None):
    """A network, a scene, a class that is there; the layer's activations and the score's gradients, in double precision."""
    model, scene = load(f"scenes-{name}"), scenes(1, TEST + 2003)
    x, category = (scene.images - 0.5) / 0.5, scene.labels[0].argmax().item()
    r = record(model, [layer], x, score or (lambda output: output[0, category]))
    laid = vit_reshape_transform if name == "vit" else lambda t: t
    module = model.get_submodule(layer)
    return model, x, category, *(laid(kept[module][0])[0].detach().double().numpy() for kept in (r.activations, r.gradients)), r.output[0].numpy()


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
    like = np.linalg.norm(rows + activations.reshape(len(activations), -1).mean(1), axis=1)
    return (flat * np.sign(flat @ (like - like.mean()))).reshape(activations.shape[1:])


def by_fem(activations, k, form):
    raw = np.zeros(activations.shape[1:])
    for channel in activations:
        strong = channel > channel.mean() + k * np.sqrt(np.mean((channel - channel.mean()) ** 2))
        raw += channel.mean() * strong if form == "mean" else strong.mean() * channel
    return raw


def raw_map(cam, x, targets=None):
    """A method's own map, before it is made positive and resized."""
    kept = []
    image = cam.get_cam_image
    cam.get_cam_image = lambda *pair: (kept.append(image(*pair)), kept[-1])[1]
    cam(x, targets)
    return kept[0][0].numpy().astype(float)


def close(ours, slow):
    assert np.abs(ours - slow).max() / np.abs(slow).max() < 1e-4


@pytest.mark.parametrize("name, layer", NETS)
def test_eigencam(name, layer):
    model, x, category, a, *_ = seen(name, layer)
    close(raw_map(EigenCAM(model, layer), x), component(a, np.linalg.norm(a, axis=0)))


@pytest.mark.parametrize("name, layer", NETS)
def test_eigen_gradcam(name, layer):
    model, x, category, a, g, _ = seen(name, layer)
    close(raw_map(EigenGradCAM(model, layer), x, category), component(g * a, (g * a).sum(0)))


@pytest.mark.parametrize("kernel", ["sigmoid", "rbf", "linear"])
@pytest.mark.parametrize("name, layer", NETS)
def test_kpca_cam(name, layer, kernel):
    model, x, category, a, *_ = seen(name, layer)
    close(raw_map(KPCA_CAM(model, layer, kernel=kernel), x), kernel_component(a, kernel))


@pytest.mark.parametrize("kernel, gamma", [("sigmoid", None), ("sigmoid", 0.02), ("rbf", None), ("linear", None)])
def test_kpca_cam_agrees_with_scikit_learn(kernel, gamma):
    decomposition = pytest.importorskip("sklearn.decomposition")
    model, x, category, a, *_ = seen("cnn", "layer4")
    rows = a.reshape(len(a), -1).T
    theirs = decomposition.KernelPCA(1, kernel=kernel, gamma=gamma).fit_transform(rows - rows.mean(0)).reshape(a.shape[1:])
    ours = raw_map(KPCA_CAM(model, "layer4", kernel=kernel, gamma=gamma), x)
    close(ours, theirs * np.sign((ours * theirs).sum()))


@pytest.mark.parametrize("name, layer", NETS)
def test_seg_eigencam(name, layer):
    model, x, category, a, g, _ = seen(name, layer)
    close(raw_map(SegEigenCAM(model, layer), x, category), component(np.abs(g) * a))


@pytest.mark.parametrize("form", ["mean", "share"])
@pytest.mark.parametrize("name, layer", NETS)
def test_fem(name, layer, form):
    model, x, category, a, *_ = seen(name, layer)
    close(raw_map(FEM(model, layer, k=1.5, form=form), x), by_fem(a, 1.5, form))


def test_cam():
    model, x, category, a, g, scores = seen("cnn", "layer4")
    weights, bias = model.fc.weight[category].detach().double().numpy(), model.fc.bias[category].item()
    slow = sum(w * channel for w, channel in zip(weights, a))
    heat = CAM(model, "layer4")(x, category)
    expected = torch.nn.functional.interpolate(torch.tensor(slow).clamp(min=0)[None, None], size=(128, 128), mode="bilinear")[0, 0]
    close(heat[0].numpy(), (expected / expected.max()).numpy())
    assert abs(slow.mean() + bias - scores[category]) < 1e-4  # the map's mean is the score
    close(g * a[0].size, np.broadcast_to(weights[:, None, None], a.shape))  # GradCAM's weights, up to a factor


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
        CAM(torchvision.models.vgg11().eval(), "features.19")(x)
    with pytest.raises(ValueError, match="in front of the global average pooling"):  # class token: the head fits, but not behind a mean
        CAM(load("scenes-vit"), "blocks.5.norm1")(torch.randn(1, 3, 128, 128))
    with pytest.raises(ValueError, match="pass a class index"):
        CAM(load("scenes-cnn"), "layer4")(torch.randn(1, 3, 128, 128), lambda output: output.sum())


@pytest.mark.parametrize("weighting", ["mean", "softmax"])
@pytest.mark.parametrize("name, layer", NETS)
def test_finercam(name, layer, weighting):
    *_, category, _, _, scores = seen(name, layer)
    others = [c for c in np.argsort(np.abs(scores - scores[category])) if c != category][:3]
    p = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()

    def difference(output):  # the weights written out, their gradient with them
        probabilities = output[0].softmax(0)
        v = [probabilities[c] if weighting == "softmax" else 1 for c in others]
        return sum(w * (output[0, category] - 0.7 * output[0, c]) for w, c in zip(v, others)) / sum(v)

    model, x, _, a, g, _ = seen(name, layer, difference)
    slow = sum(channel * gradient.mean() for channel, gradient in zip(a, g))
    cam = FinerCAM(model, layer, gamma=0.7, weighting=weighting)
    kept = []
    cam.base.get_cam_image = lambda *pair: (kept.append(GradCAM.get_cam_image(cam.base, *pair)), kept[-1])[1]
    cam(x, category)
    close(kept[0][0].numpy(), slow)
    v = p[others] / p[others].sum() if weighting == "softmax" else np.ones(3) / 3
    target = FinerTarget(category, 0.7, weighting=weighting)
    assert abs(target(torch.tensor(scores)).item() - (scores[category] - 0.7 * v @ scores[others])) < 1e-4
    assert set(cam.run(x, category).targets[0].comparisons) == set(others)


def test_finercam_asks_changed_copies_the_same():
    """Where a changed copy has another top class and other near scores, the plain picture's are compared all the same."""
    model, batch = load("scenes-cnn"), scenes(4, TEST + 2000)
    x, negate = batch.images * 2 - 1, (lambda t: -t, lambda m: m)
    assert (model(-x).argmax(1) != model(x).argmax(1)).any()
    cam = FinerCAM(model, "layer4")
    named = cam.run(x).targets
    assert torch.allclose(cam(x, aug_smooth=[negate]), cam(x, named, aug_smooth=[negate]), atol=1e-5)


def oriented(theirs, ours):
    """PyPI's raw map, turned to our sign: theirs is arbitrary."""
    return theirs * np.sign((theirs * ours).sum())


@pytest.mark.parametrize("method, up_to_sign, how", [
    ("EigenCAM", True, {}), ("EigenGradCAM", True, {}), ("KPCA_CAM", True, {}), ("SegEigenCAM", False, {}), ("FEM", False, {"form": "share"}),
])
@pytest.mark.parametrize("name", PEERS)
def test_agrees_with_pytorch_grad_cam(name, method, up_to_sign, how):
    peer = pytest.importorskip("pytorch_grad_cam")
    cls = {"EigenCAM": EigenCAM, "EigenGradCAM": EigenGradCAM, "KPCA_CAM": KPCA_CAM, "SegEigenCAM": SegEigenCAM, "FEM": FEM}[method]
    theirs_cls = getattr(peer, method, None) or pytest.importorskip(f"pytorch_grad_cam.{'seg_eigen_cam' if method == 'SegEigenCAM' else method.lower()}").__dict__[method]
    torch.manual_seed(0)
    build, layer, reshape = PEERS[name]
    model, x = build().eval(), torch.randn(2, 3, 224, 224)
    kept = {}
    theirs = theirs_cls(model, [model.get_submodule(layer)], reshape_transform=reshape)
    image = theirs.get_cam_image
    theirs.get_cam_image = lambda *args: kept.setdefault("theirs", image(*args))
    theirs(x, [ClassifierOutputTarget(5), ClassifierOutputTarget(7)])
    cam = cls(model, layer, **how)
    own = cam.get_cam_image
    cam.get_cam_image = lambda *pair: kept.setdefault("ours", own(*pair))
    cam(x, [5, 7])
    for a, b in zip(kept["ours"].numpy(), kept["theirs"]):
        b = oriented(b, a) if up_to_sign else b
        assert np.corrcoef(np.maximum(a, 0).ravel(), np.maximum(b, 0).ravel())[0, 1] > 0.999


@pytest.mark.parametrize("name", PEERS)
def test_finercam_agrees_with_pytorch_grad_cam(name):
    peer = pytest.importorskip("pytorch_grad_cam.finer_cam")
    torch.manual_seed(0)
    build, layer, reshape = PEERS[name]
    model, x = build().eval(), torch.randn(2, 3, 224, 224)
    theirs = peer.FinerCAM(model, [model.get_submodule(layer)], reshape_transform=reshape)(x, None)
    ours = FinerCAM(model, layer, weighting="softmax", gamma=1.0)(x).numpy()
    for a, b in zip(ours, theirs):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.999


def test_the_sign_is_not_the_machines():
    """The component of a layer and of the same layer with its channels in another order have one sign (others' maps turn over)."""
    model, batch = load("scenes-cnn"), scenes(16, TEST + 2000)
    (a,) = record(model, ["layer4"], (batch.images - 0.5) / 0.5).activations[model.layer4]
    order = torch.randperm(a.shape[1], generator=torch.Generator().manual_seed(0))
    for cam in (EigenCAM(model, "layer4"), KPCA_CAM(model, "layer4")):
        plain, shuffled = (cam.get_cam_image(t.detach(), None) for t in (a, a[:, order]))
        assert ((plain * shuffled).flatten(1).sum(1) > 0).all() and torch.allclose(plain, shuffled, atol=1e-3 * plain.abs().max())
