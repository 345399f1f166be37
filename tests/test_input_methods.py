"""Methods at the input and their neighbours: FullGrad, guided backpropagation, factorization, RefineCAM, Sobel."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
import torchvision
from oracles import (
    as_numpy,
    asked,
    assert_same,
    assert_same_state,
    assert_untouched,
    enlarged,
    graph,
    heat_map,
    on_grid,
    plusplus_weights,
    weighed,
)
from tiny_models import vgg11
from torch import nn

from gradcam_nb.engine.record import record
from gradcam_nb.engine.visit import FromInput
from gradcam_nb.methods.deep_feature_factorization import (
    DeepFeatureFactorization,
    create_labels_legend,
    dff,
    run_dff_on_image,
    show_factorization_on_image,
)
from gradcam_nb.methods.fullgrad import FullGrad, layer_bias
from gradcam_nb.methods.guided_backprop import GuidedBackpropReLUModel
from gradcam_nb.methods.guided_gradcam import GuidedGradCAM
from gradcam_nb.methods.refinecam import RefineCAM
from gradcam_nb.methods.sobel import Sobel, sobel_cam
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import TEST, scenes

SCENES = [("cnn", "layer4"), ("vit", "blocks.5.norm1")]


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
    "vgg11": vgg11,  # biases of convolutions
    "regnet": lambda: timm.create_model("regnetx_002"),  # norms that hold their activation function
    "densenet": lambda: torchvision.models.densenet121(),  # functional ReLU and concatenation
}


@pytest.mark.parametrize("name", BIASED)
def test_the_parts_of_fullgrad_add_up_to_the_score(name):
    torch.manual_seed(0)
    model, x = with_statistics(BIASED[name]()).double(), torch.randn(1, 3, 64, 64, dtype=torch.double)
    cam, whole = FullGrad(model), FromInput(model)
    cam.run(x, 5)
    gradients = record(whole, [whole.input, *cam.biased], x, lambda o: o[0, 5]).gradients
    total = (x * gradients[whole.input][0][0][0]).sum()
    for place, (layer, _) in cam.biased.items():
        bias = layer_bias(layer).double().view(-1, 1, 1)
        total = total + sum((bias * g).sum() for g in gradients[place])
    linear = {m: m.bias for m in model.modules() if isinstance(m, nn.Linear)}
    r = record(model, linear, x, lambda o: o[0, 5])
    total = total + sum((b * r.gradients[m][0]).sum() for m, b in linear.items())
    assert abs(total - r.output[0, 5]) < 1e-4 * max(1, abs(r.output[0, 5]))


def bias_of(m):
    """A layer's bias; of a batch norm with what its running mean subtracts."""
    if not isinstance(m, nn.BatchNorm2d):
        return m.bias
    return m.bias - m.running_mean / (m.running_var + m.eps).sqrt() * m.weight


def fullgrad_by_numpy(model, x, category):
    """The authors' code, slowly, from plain autograd and hooks: one layer and one channel at a time."""
    model = copy.deepcopy(model)
    for m in model.modules():
        if isinstance(m, nn.ReLU):
            m.inplace = False
    kept = []
    for m in model.modules():
        if getattr(m, "bias", None) is not None:
            m.register_forward_hook(lambda m, a, o: kept.append((m, o)))
    x = x.clone().requires_grad_()
    output = model(x)
    at_input, *gradients = torch.autograd.grad(output[0, category], [x] + [o for _, o in kept], allow_unused=True)
    parts = [as_numpy(x[0] * at_input[0])]
    for (m, o), g in zip(kept, gradients):
        if o.ndim >= 3:
            parts.append(as_numpy(bias_of(m))[:, None, None] * as_numpy(on_grid(g)[0]))
    heat = np.zeros(x.shape[2:])
    for part in map(np.abs, parts):
        if part.max() == part.min():  # such as the last norm of a transformer that reads its class token
            continue
        part = (part - part.min()) / (part.max() - part.min())
        heat += enlarged(sum(channel for channel in part), len(heat))
    return heat / heat.max()


@pytest.mark.parametrize("name", ["scenes-cnn", "scenes-vit", "vgg11", "resnet18"])
def test_fullgrad_equals_the_paper_in_numpy(name):
    torch.manual_seed(0)
    model = load(name) if name.startswith("scenes") else with_statistics(BIASED[name]())
    x = (scenes(1, TEST + 2003).images - 0.5) / 0.5
    assert_same(FullGrad(model)(x, 5)[0], fullgrad_by_numpy(model, x, 5))


def test_fullgrad_leaves_no_trace_and_serves_threads():
    model = load("scenes-cnn").train()
    state = copy.deepcopy(model.state_dict())
    xs = [torch.randn(1, 3, 128, 128) for _ in range(3)]
    alone = [FullGrad(model)(x, i) for i, x in enumerate(xs)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda i: FullGrad(model)(xs[i % 3], i % 3), range(9)))
    for i, heat in enumerate(together):
        assert torch.allclose(heat, alone[i % 3], atol=1e-5), f"call {i}"
    assert_untouched(model)
    assert_same_state(model, state)


def test_fullgrad_names_the_models_own_layers():
    model = load("scenes-cnn")
    cam = FullGrad(model, target_layers="layer4")
    cam(torch.randn(1, 3, 128, 128), 1)
    assert len(cam.target_layers) > 1
    assert set(cam.target_layers) <= set(model.modules())


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
    assert_same(ours, guided_in_numpy(x, weights, 2))


def numpy_conv(m, x):
    """A convolution's output, and how a gradient goes back through it."""
    (pad, _), (step, _), (gap, _), w = m.padding, m.stride, m.dilation, as_numpy(m.weight)
    wide = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    rows, columns = ((n + 2 * pad - gap * (w.shape[2] - 1) - 1) // step + 1 for n in x.shape[1:])

    def seen(i, j):
        """All that the kernel's place (i, j) looks at."""
        down, across = gap * i, gap * j
        return slice(None), slice(down, down + step * (rows - 1) + 1, step), slice(across, across + step * (columns - 1) + 1, step)

    def back(g):
        total = np.zeros_like(wide)
        for i, j in np.ndindex(w.shape[2:]):
            total[seen(i, j)] += np.einsum("oc,ohw->chw", w[:, :, i, j], g)
        return total[:, pad : pad + x.shape[1], pad : pad + x.shape[2]]

    return sum(np.einsum("oc,chw->ohw", w[:, :, i, j], wide[seen(i, j)]) for i, j in np.ndindex(w.shape[2:])), back


def numpy_norm(m, x):
    """A batch norm's output, and how a gradient goes back through it."""
    gain, mean, bias = (as_numpy(t)[:, None, None] for t in (m.weight / (m.running_var + m.eps).sqrt(), m.running_mean, m.bias))
    return gain * (x - mean) + bias, lambda g: gain * g


def numpy_layer(m, x):
    """A layer's output, and how a gradient goes back through it: ReLUs let only what is positive pass, both ways."""
    if isinstance(m, nn.ReLU):
        return np.maximum(x, 0), lambda g: np.maximum(g, 0) * (x > 0)
    return numpy_norm(m, x) if isinstance(m, nn.BatchNorm2d) else numpy_conv(m, x)


def numpy_chain(layers, x):
    """The same for layers one behind the other, blocks of a residual network among them."""
    backs = []
    for m in layers:
        x, back = numpy_block(m, x) if hasattr(m, "conv2") else numpy_layer(m, x)
        backs.insert(0, back)

    def through(g):
        for back in backs:
            g = back(g)
        return g

    return x, through


def numpy_block(b, x):
    """The same for a block of two convolutions and what goes past them."""
    main, main_back = numpy_chain([b.conv1, b.bn1, b.act1, b.conv2, b.bn2], x)
    side, side_back = numpy_chain(b.downsample or [], x)
    total, back = numpy_layer(b.act2, main + side)
    return total, lambda g: main_back(back(g)) + side_back(back(g))


def guided_cnn(model, x, category):
    """All of scenes-cnn in numpy: convolutions, norms, ReLUs, blocks, and the mean in front of the classifier."""
    layers = [*model.conv1, model.bn1, model.act1, *model.layer1, *model.layer2, *model.layer3, *model.layer4]
    a, back = numpy_chain(layers, as_numpy(x[0]))
    weights = as_numpy(model.fc.weight[category])[:, None, None]
    return back(np.broadcast_to(weights / a[0].size, a.shape))


def guided_vit(model, x, category):
    """scenes-vit has ReLUs in its first four convolutions only: autograd behind them, whose GELUs keep their gradient; numpy in front."""
    *stem, last = [m for m in model.patch_embed.proj.modules() if not isinstance(m, nn.Sequential)]
    _, back = numpy_chain(stem, as_numpy(x[0]))
    kept = []
    handle = last.register_forward_pre_hook(lambda m, given: kept.append(given[0].requires_grad_()))
    output = model(x)
    handle.remove()
    (gradient,) = torch.autograd.grad(output[0, category], kept)
    return back(as_numpy(gradient[0]))


@pytest.mark.parametrize("name, slow", [("cnn", guided_cnn), ("vit", guided_vit)])
def test_guided_backpropagation_of_a_network_in_numpy(name, slow):
    model, x, category = asked(name)
    assert_same(GuidedBackpropReLUModel(model, relu_only=True)(x, category)[0], slow(model, x, category))


@pytest.mark.parametrize("name, slow", [("cnn", guided_cnn), ("vit", guided_vit)])
def test_guided_gradcam_in_numpy(name, slow):
    model, x, category = asked(name)
    layer = dict(SCENES)[name]
    (a,), (g,) = graph(model, layer, x, lambda output: output[0, category])
    heat = heat_map(weighed(a, [gradient.mean() for gradient in g]), 128)
    assert_same(GuidedGradCAM(model, layer, relu_only=True)(x, category)[0], heat * slow(model, x, category))


def test_factorization_is_as_good_as_scikit_learns():
    decomposition = pytest.importorskip("sklearn.decomposition")
    model, x = load("scenes-cnn"), (scenes(4, TEST + 2000).images - 0.5) / 0.5
    A = record(model, ["layer4"], x).activations[model.layer4][0]
    V = A.transpose(0, 1).flatten(1)
    for n in (3, 6):
        concepts, where = dff(A, n)
        ours = (V - concepts @ where.transpose(0, 1).flatten(1)).norm()
        theirs = decomposition.NMF(n, init="random", random_state=0, max_iter=1000).fit(V.numpy()).reconstruction_err_
        assert ours < 1.05 * theirs, f"{n} components"


def test_updates_in_numpy():
    """Lee and Seung's updates, with loops, from the same start."""
    A = torch.rand(1, 5, 2, 3, generator=torch.Generator().manual_seed(3))
    V, k, rng = A[0].flatten(1).double().numpy(), 2, torch.Generator().manual_seed(0)
    scale = np.sqrt(V.mean() / k)
    W, H = (scale * torch.rand(*s, generator=rng).double().numpy() for s in ((5, k), (k, 6)))

    def new_H(a, p):
        made = (W @ H)[:, p]
        return H[a, p] * sum(W[c, a] * V[c, p] for c in range(5)) / sum(W[c, a] * made[c] for c in range(5))

    def new_W(c, a):
        made = (W @ H)[c]
        return W[c, a] * sum(V[c, p] * H[a, p] for p in range(6)) / sum(made[p] * H[a, p] for p in range(6))

    for _ in range(50):
        H = np.array([[new_H(a, p) for p in range(6)] for a in range(k)])
        W = np.array([[new_W(c, a) for a in range(k)] for c in range(5)])
    concepts, where = dff(A, k, iterations=50)
    assert np.abs(concepts.numpy() @ where[0].flatten(1).numpy() - W @ H).max() < 1e-4
    assert where.amax((0, 2, 3)).eq(1).all()


@pytest.mark.parametrize("name, layer", SCENES)
def test_factorization_in_numpy(name, layer):
    """All channels and places of a layer: the channels' negative parts lifted, the same updates in double precision."""
    model, x, _ = asked(name)
    A = as_numpy(on_grid(record(model, [layer], x).activations[model.get_submodule(layer)][0])[0])
    V, k, rng = A.reshape(len(A), -1), 3, torch.Generator().manual_seed(0)
    low = np.array([min(channel.min(), 0) for channel in V])[:, None]
    V = V - low
    W, H = (np.sqrt(V.mean() / k) * torch.rand(*s, generator=rng).double().numpy() for s in ((len(V), k), (k, V.shape[1])))
    for _ in range(40):
        H = H * (W.T @ V) / (W.T @ W @ H)
        W = W * (V @ H.T) / (W @ H @ H.T)
    order = np.argsort([-np.linalg.norm(W[:, i]) * np.linalg.norm(H[i]) for i in range(k)])
    concepts, where = dff(torch.from_numpy(A)[None].float(), k, iterations=40)
    assert_same(where[0].flatten(1), np.stack([H[i] / H[i].max() for i in order]))
    assert_same(concepts, np.stack([W[:, i] * H[i].max() for i in order], 1) + low)


def test_factorization_of_a_transformer_and_its_pictures():
    model, batch = load("scenes-vit"), scenes(2, TEST + 2000)
    concepts, heats = DeepFeatureFactorization(model)((batch.images - 0.5) / 0.5, 4)
    assert concepts.shape == (96, 4)
    assert heats.shape == (2, 4, 128, 128)
    assert show_factorization_on_image(batch.images[0], heats[0], concept_labels=list("abcd")).shape == (128, 256, 3)
    assert create_labels_legend(torch.tensor([[0.1, 0.7, 0.2]]), {0: "a", 1: "b, c, d, e", 2: "f"}) == ["b, c, d:0.70\nf:0.20"]
    cnn = load("scenes-cnn")
    shown = run_dff_on_image(cnn, cnn.layer4, cnn.fc, batch.images[0], (batch.images[0] - 0.5) / 0.5)
    assert shown.shape == (128, 384, 3)
    assert shown.dtype == np.uint8


@pytest.mark.parametrize("name, layers", [("cnn", ["layer2", "layer3", "layer4"]), ("vit", ["blocks.3.norm1", "blocks.5.norm1"])])
def test_refinecam_in_numpy(name, layers):
    """Grad-CAM++ of each layer, positive, enlarged and divided by its maximum; their product, divided by its own."""
    model, x, category = asked(name)
    product = 1
    for layer in layers:
        (a,), (g,) = graph(model, layer, x, lambda output: output[0, category])
        product = product * heat_map(weighed(a, plusplus_weights(a, g)), 128)
    assert_same(RefineCAM(model, layers)(x, category)[0], product / product.max())


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


def test_sobel_in_numpy():
    """Two filters of three by three, one place at a time; the picture is mirrored at its borders."""
    picture = scenes(1, TEST + 2003).images[0, :, 40:72, 30:60].double().numpy()
    grey = np.pad(0.299 * picture[0] + 0.587 * picture[1] + 0.114 * picture[2], 1, mode="reflect")
    across = np.outer((1, 2, 1), (-1, 0, 1))
    slow = np.zeros(picture.shape[1:])
    for y, x in np.ndindex(slow.shape):
        window = grey[y : y + 3, x : x + 3]
        slow[y, x] = (abs((across * window).sum()) + abs((across.T * window).sum())) / 2
    assert_same(sobel_cam(torch.from_numpy(picture)[None].float())[0], slow)
    assert_same(Sobel()(torch.from_numpy(picture)[None].float())[0], slow / slow.max())


def test_sobel_agrees_with_opencv():
    import cv2

    picture = (torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0)) * 40).numpy().transpose(1, 2, 0).astype(np.float32)
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    expected = sum(np.abs(cv2.Sobel(grey, cv2.CV_64F, a, 1 - a, ksize=3)) for a in (0, 1)) / 2
    ours = sobel_cam(torch.from_numpy(picture.transpose(2, 0, 1))[None])[0].numpy()
    assert np.abs(ours - expected).max() < 1e-4 * expected.max()
    assert Sobel("no model")(torch.rand(2, 3, 8, 9), [1, 2]).shape == (2, 8, 9)
