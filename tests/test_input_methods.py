"""Methods at the input and their neighbours: FullGrad, guided backpropagation, factorization, RefineCAM, Sobel."""
import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from gradcam_nb.core.record import record
from gradcam_nb.methods.deep_feature_factorization import DeepFeatureFactorization, create_labels_legend, dff, run_dff_on_image, show_factorization_on_image
from gradcam_nb.methods.fullgrad import FromInput, FullGrad, layer_bias
from gradcam_nb.methods.gradcam import GradCAM
from gradcam_nb.methods.guided_backprop import GuidedBackpropReLUModel
from gradcam_nb.methods.guided_gradcam import GuidedGradCAM
from gradcam_nb.methods.refinecam import RefineCAM
from gradcam_nb.methods.sobel import Sobel, sobel_cam
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import TEST, scenes


def pearson(a, b):
    return np.corrcoef(np.asarray(a).ravel(), np.asarray(b).ravel())[0, 1]


def with_statistics(model):
    """Biases that are not zero, and batch norms with statistics of their own, so that their implicit bias counts."""
    rng = torch.Generator().manual_seed(1)
    for m in model.modules():
        if getattr(m, "bias", None) is not None:
            nn.init.normal_(m.bias, std=0.1, generator=rng)
        if hasattr(m, "running_mean"):
            m.running_mean.copy_(torch.randn(m.running_mean.shape, generator=rng) / 10)
            m.running_var.copy_(torch.rand(m.running_var.shape, generator=rng) + 0.5)
    return model.eval()


BIASED = {
    "resnet18": lambda: torchvision.models.resnet18(),  # in-place ReLUs behind the norms
    "vgg11": lambda: torchvision.models.vgg11(),  # biases of convolutions
    "regnet": lambda: timm.create_model("regnetx_002"),  # norms that hold their activation function
    "densenet": lambda: torchvision.models.densenet121(),  # functional ReLU and concatenation
}


@pytest.mark.parametrize("name", BIASED)
def test_the_parts_of_fullgrad_add_up_to_the_score(name):
    torch.manual_seed(0)
    model, x = with_statistics(BIASED[name]()).double(), torch.randn(1, 3, 64, 64, dtype=torch.double)
    cam = FullGrad(model)
    run = cam.run(x, 5)
    gradients, (first, *places) = run.record.gradients, run.layers
    total = (x * gradients[first][0][0][0]).sum()
    for place in places:
        bias = layer_bias(cam.biased[place]).double()
        total = total + sum((bias.view(-1, 1, 1) * g).sum() for g in gradients[place])
    linear = {m: m.bias for m in model.modules() if isinstance(m, nn.Linear)}
    r = record(model, linear, x, lambda o: o[0, 5])
    total = total + sum((b * r.gradients[m][0]).sum() for m, b in linear.items())
    assert abs(total - r.output[0, 5]) < 1e-4 * max(1, abs(r.output[0, 5]))


def fullgrad_by_numpy(model, x, category):
    """The authors' code, slowly, from plain autograd and hooks: one layer and one channel at a time."""
    model = copy.deepcopy(model)
    for m in model.modules():
        if isinstance(m, nn.ReLU):
            m.inplace = False
    kept, layers = [], [m for m in model.modules() if getattr(m, "bias", None) is not None]
    handles = [m.register_forward_hook(lambda m, a, o: kept.append((m, o))) for m in layers]
    x = x.clone().requires_grad_()
    output = model(x)
    [h.remove() for h in handles]
    gradients = torch.autograd.grad(output[0, category], [x] + [o for _, o in kept], allow_unused=True)
    parts = [(x.detach()[0] * gradients[0][0]).numpy().astype(float)]
    for (m, o), g in zip(kept, gradients[1:]):
        if o.ndim != 4:
            continue
        mean = m.running_mean / (m.running_var + m.eps).sqrt() * m.weight if isinstance(m, nn.BatchNorm2d) else 0
        parts.append(((m.bias - mean).detach()[:, None, None] * g[0]).numpy().astype(float))
    heat = np.zeros(x.shape[2:])
    for part in parts:
        part = np.abs(part)
        part = (part - part.min()) / (part.max() - part.min())
        for channel in part:
            heat += F.interpolate(torch.from_numpy(channel)[None, None], size=heat.shape, mode="bilinear")[0, 0].numpy()
    return heat / heat.max()


@pytest.mark.parametrize("name", ["scenes-cnn", "vgg11", "resnet18"])
def test_fullgrad_equals_the_paper_in_numpy(name):
    torch.manual_seed(0)
    model = load(name) if name == "scenes-cnn" else with_statistics(BIASED[name]())
    x = (scenes(1, TEST + 2003).images - 0.5) / 0.5
    assert np.abs(FullGrad(model)(x, 5)[0].numpy() - fullgrad_by_numpy(model, x, 5)).max() < 1e-4


def test_fullgrad_leaves_no_trace_and_serves_threads():
    model = load("scenes-cnn").train()
    state = copy.deepcopy(model.state_dict())
    xs = [torch.randn(1, 3, 128, 128) for _ in range(3)]
    alone = [FullGrad(model)(x, i) for i, x in enumerate(xs)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda i: FullGrad(model)(xs[i % 3], i % 3), range(9)))
    assert all(torch.allclose(heat, alone[i % 3], atol=1e-5) for i, heat in enumerate(together))
    assert all(m.training and "forward" not in m.__dict__ and not m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters()) and all((state[k] == v).all() for k, v in model.state_dict().items())


def test_fullgrad_of_many_targets_frozen_and_in_inference_mode():
    model, x = load("scenes-cnn").requires_grad_(False), torch.randn(2, 3, 128, 128)
    cam = FullGrad(model, target_layers="layer4")
    with torch.inference_mode():
        both = cam.many(x, [1, 4])
    assert torch.allclose(both[:, 0], cam(x, 1), atol=1e-5) and torch.allclose(both[:, 1], cam(x, 4), atol=1e-5)
    names = dict((m, n) for n, m in model.named_modules())
    assert all(layer in names for layer in cam.target_layers)
    smooth = cam(x, 1, eigen_smooth=True, aug_smooth=True)
    assert smooth.shape == (2, 128, 128) and smooth.isfinite().all()


def guided_in_numpy(x, weights, category):
    """A small perceptron with ReLUs, forwards and backwards by hand."""
    kept, h = [], x
    for w in weights[:-1]:
        kept.append(w @ h)
        h = np.maximum(kept[-1], 0)
    back = weights[-1][category]
    for w, a in zip(weights[-2::-1], kept[::-1]):
        back = w.T @ (np.maximum(back, 0) * (a > 0))
    return back


def test_guided_backpropagation_in_numpy():
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=s).astype(np.float32) for s in ((20, 9), (16, 20), (4, 16))]
    layers = []
    for w in weights:
        linear = nn.Linear(w.shape[1], w.shape[0], bias=False)
        linear.weight.data = torch.from_numpy(w)
        layers += [linear, nn.ReLU(inplace=len(layers) > 1)]
    x = rng.normal(size=9).astype(np.float32)
    ours = GuidedBackpropReLUModel(nn.Sequential(*layers[:-1]))(torch.from_numpy(x)[None], 2)[0].numpy()
    assert np.abs(ours - guided_in_numpy(x, weights, 2)).max() < 1e-4 * np.abs(ours).max()


@pytest.mark.parametrize("name", ["resnet18", "vgg11"])
def test_guided_backpropagation_agrees_with_pytorch_grad_cam(name):
    peer = pytest.importorskip("pytorch_grad_cam")
    torch.manual_seed(0)
    model, x = getattr(torchvision.models, name)().eval(), torch.randn(2, 3, 224, 224)
    ours = GuidedBackpropReLUModel(model)(x, [5, 7])
    for i, category in enumerate((5, 7)):
        theirs = peer.GuidedBackpropReLUModel(copy.deepcopy(model), device="cpu")(x[[i]].clone(), category).transpose(2, 0, 1)
        assert np.abs(ours[i].numpy() - theirs).max() < 1e-4 * np.abs(theirs).max() and pearson(ours[i], theirs) > 0.999


def test_guided_backpropagation_leaves_no_trace():
    model = torchvision.models.resnet18().train()
    kinds, state, relus = [type(m) for m in model.modules()], copy.deepcopy(model.state_dict()), {id(m) for m in model.modules()}
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        first = GuidedBackpropReLUModel(model)(x)
        assert GuidedGradCAM(model)(x).shape == x.shape
    assert kinds == [type(m) for m in model.modules()] and relus == {id(m) for m in model.modules()}
    assert model.training and all(p.grad is None for p in model.parameters()) and not x.requires_grad
    assert all((state[k] == v).all() for k, v in model.state_dict().items())
    plain = record(whole := FromInput(model), [whole.input], x, lambda o: o[0].max()).gradients[whole.input][0][0][0]
    assert not torch.allclose(plain, first)  # outside, a ReLU is a ReLU again
    with pytest.raises(ZeroDivisionError):
        GuidedBackpropReLUModel(model)(x, lambda output: 1 / 0)
    assert F.relu(x.clone().requires_grad_()).grad_fn.name() == "ReluBackward0" and model.training


def test_guided_gradcam_is_the_product():
    peer = pytest.importorskip("pytorch_grad_cam")
    torch.manual_seed(0)
    model, x = torchvision.models.resnet18().eval(), torch.randn(1, 3, 224, 224)
    ours = GuidedGradCAM(model, "layer4")(x, 5)[0].numpy()
    heat = GradCAM(model, "layer4")(x, 5)[0].numpy()
    theirs = peer.GuidedBackpropReLUModel(copy.deepcopy(model), device="cpu")(x.clone(), 5).transpose(2, 0, 1)
    assert pearson(ours, heat * theirs) > 0.999


def test_factorization_is_as_good_as_scikit_learns():
    decomposition = pytest.importorskip("sklearn.decomposition")
    model, x = load("scenes-cnn"), (scenes(4, TEST + 2000).images - 0.5) / 0.5
    A = record(model, ["layer4"], x).activations[model.layer4][0]
    V = A.transpose(0, 1).flatten(1)
    for n in (3, 6):
        concepts, where = dff(A, n)
        ours = (V - concepts @ where.transpose(0, 1).flatten(1)).norm()
        theirs = decomposition.NMF(n, init="random", random_state=0, max_iter=1000).fit(V.numpy()).reconstruction_err_
        assert ours < 1.05 * theirs


def test_updates_in_numpy():
    """Lee and Seung's updates, with loops, from the same start."""
    A = torch.rand(1, 5, 2, 3, generator=torch.Generator().manual_seed(3))
    V, k, rng = A[0].flatten(1).double().numpy(), 2, torch.Generator().manual_seed(0)
    scale = np.sqrt(V.mean() / k)
    W, H = (scale * torch.rand(*s, generator=rng).double().numpy() for s in ((5, k), (k, 6)))
    for _ in range(50):
        new = H.copy()
        for a in range(k):
            for p in range(6):
                new[a, p] = H[a, p] * sum(W[c, a] * V[c, p] for c in range(5)) / sum(W[c, a] * (W @ H)[c, p] for c in range(5))
        H, new = new, W.copy()
        for c in range(5):
            for a in range(k):
                new[c, a] = W[c, a] * sum(V[c, p] * H[a, p] for p in range(6)) / sum((W @ H)[c, p] * H[a, p] for p in range(6))
        W = new
    concepts, where = dff(A, k, iterations=50)
    assert np.abs(concepts.numpy() @ where[0].flatten(1).numpy() - W @ H).max() < 1e-4
    assert where.amax((0, 2, 3)).eq(1).all()


def test_factorization_of_a_transformer_and_its_pictures():
    model, batch = load("scenes-vit"), scenes(2, TEST + 2000)
    concepts, heats = DeepFeatureFactorization(model)((batch.images - 0.5) / 0.5, 4)
    assert concepts.shape == (96, 4) and heats.shape == (2, 4, 128, 128)
    before = heats.clone()
    assert show_factorization_on_image(batch.images[0], heats[0], concept_labels=list("abcd")).shape == (128, 256, 3)
    assert (before == heats).all()
    assert create_labels_legend(torch.tensor([[0.1, 0.7, 0.2]]), {0: "a", 1: "b, c, d, e", 2: "f"}) == ["b, c, d:0.70\nf:0.20"]
    cnn = load("scenes-cnn")
    shown = run_dff_on_image(cnn, cnn.layer4, cnn.fc, batch.images[0], (batch.images[0] - 0.5) / 0.5)
    assert shown.shape == (128, 384, 3) and shown.dtype == np.uint8


def test_refinecam_agrees_with_pytorch_grad_cam():
    peer = pytest.importorskip("pytorch_grad_cam")
    target = pytest.importorskip("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    refine = pytest.importorskip("pytorch_grad_cam.refine_cam").RefineCAM
    torch.manual_seed(0)
    model, x = torchvision.models.resnet18().eval(), torch.randn(2, 3, 224, 224)
    theirs = refine(model, [model.layer3, model.layer4], base_method=peer.GradCAM)(x, [target(5), target(7)])
    ours = RefineCAM(model, ["layer3", "layer4"], base_method=GradCAM)(x, [5, 7])
    for a, b in zip(ours, theirs):
        assert pearson(a, b) > 0.999


@pytest.mark.filterwarnings("ignore:blank heat map")  # noise, of which nothing may speak for a class
def test_refinecam_finds_a_layer_a_resolution():
    model, x = torchvision.models.resnet18().eval(), torch.randn(1, 3, 64, 64)
    cam = RefineCAM(model)
    assert cam(x, 3).shape == (1, 64, 64)
    names = {m: n for n, m in model.named_modules()}
    assert [names[m] for m in cam.target_layers][-3:] == ["layer2", "layer3", "layer4"]
    vit = RefineCAM(load("scenes-vit"))
    assert vit(torch.randn(1, 3, 128, 128), 3).shape == (1, 128, 128)
    both = cam.many(x, [3, 4])
    assert torch.allclose(both[:, 0], cam(x, 3), atol=1e-5)


def test_sobel_agrees_with_opencv():
    import cv2

    picture = (torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0)) * 40).numpy().transpose(1, 2, 0).astype(np.float32)
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    expected = sum(np.abs(cv2.Sobel(grey, cv2.CV_64F, a, 1 - a, ksize=3)) for a in (0, 1)) / 2
    ours = sobel_cam(torch.from_numpy(picture.transpose(2, 0, 1))[None])[0].numpy()
    assert np.abs(ours - expected).max() < 1e-4 * expected.max()
    peer = pytest.importorskip("pytorch_grad_cam.sobel_cam")
    assert pearson(ours, peer.sobel_cam(picture.astype(np.uint8))) > 0.98  # whole numbers
    assert Sobel("no model")(torch.rand(2, 3, 8, 9), [1, 2]).shape == (2, 8, 9)
