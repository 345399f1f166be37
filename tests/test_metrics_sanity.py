"""The metrics that ask the method again: held to numpy, scipy, scikit-image, captum, quantus and PyPI grad-cam; and the model is never touched."""

import copy
import functools
import threading
import warnings

import numpy as np
import pytest
import scipy.stats
import skimage.metrics
import torch
from pytorch_grad_cam import GradCAM as TheirGradCAM
from pytorch_grad_cam.metrics import arcc as theirs
from torch import nn

from gradcam_nb import AttentionRollout, EigenCAM, GradCAM, GuidedBackpropReLUModel, LayerCAM, RandomCAM, ScoreCAM, Sobel
from gradcam_nb.metrics.arcc import ADCC, ARCC
from gradcam_nb.metrics.coherency import Coherency
from gradcam_nb.metrics.consistency import Consistency
from gradcam_nb.metrics.max_sensitivity import MaxSensitivity
from gradcam_nb.metrics.metric import Metric
from gradcam_nb.metrics.parameter_randomisation import ParameterRandomisation, learnt_layers, redraw
from gradcam_nb.metrics.road import ROADCombined
from gradcam_nb.metrics.similarity import cosine, pearson, spearman, ssim
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import TEST, scenes
from gradcam_nb.targets.classifier import ClassifierOutputTarget

pytestmark = pytest.mark.filterwarnings("ignore:blank heat map", "ignore:An input array is constant")
N = 4


@functools.cache
def network(name):
    return load(name)


@functools.cache
def pictures():
    batch = scenes(N, TEST + 2000)
    return batch.images * 2 - 1, batch.labels.argmax(1), batch.masks[range(N), batch.labels.argmax(1)].float()


class Chance:
    """Maps that depend on each picture alone, and on nothing else."""

    def __call__(self, rows, targets):
        return torch.stack(
            [
                torch.rand(row.shape[1:], generator=torch.Generator().manual_seed(int(row.double().abs().sum() * 1e6) % 2**31))
                for row in rows
            ]
        )


class Guided:
    def __init__(self, model):
        self.gradient = GuidedBackpropReLUModel(model)

    def __call__(self, rows, targets):
        maps = self.gradient(rows, targets).abs().amax(1)
        return maps / maps.flatten(1).amax(1)[:, None, None]


METHODS = {"gradcam": lambda: GradCAM(network("scenes-cnn")), "chance": Chance}


def maps_of(kind):
    x, classes, _ = pictures()
    return METHODS[kind]()(x, classes)


def correlation(a, b):
    """Two flat maps, in double precision; 0 where one is constant."""
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


# How alike two maps are


@pytest.mark.parametrize("kind", ["gradcam", "chance"])
def test_correlations_are_those_of_scipy(kind):
    a, b = maps_of(kind), LayerCAM(network("scenes-cnn"))(*pictures()[:2])
    for ours, oracle in ((pearson, scipy.stats.pearsonr), (spearman, scipy.stats.spearmanr)):
        wanted = [oracle(u.ravel(), v.ravel())[0] for u, v in zip(a.double().numpy(), b.double().numpy())]
        assert np.allclose(ours(a, b), wanted, rtol=1e-4, atol=1e-6)
    a, b = (torch.randint(4, (3, 9, 9), generator=torch.Generator().manual_seed(s)).float() for s in (0, 1))  # many ties
    assert np.allclose(spearman(a, b), [scipy.stats.spearmanr(u.ravel(), v.ravel())[0] for u, v in zip(a.numpy(), b.numpy())], atol=1e-6)


@pytest.mark.parametrize("shape", [(40,), (24, 31), (9, 8, 11)])
def test_ssim_is_that_of_scikit_image(shape):
    a, b = (torch.rand(3, *shape, generator=torch.Generator().manual_seed(s)) * scale for s, scale in ((0, 1), (1, 5)))
    b = b + 2 * a
    wanted = [
        skimage.metrics.structural_similarity(u, v, data_range=max(u.max(), v.max()) - min(u.min(), v.min()))
        for u, v in zip(a.double().numpy(), b.double().numpy())
    ]
    assert np.allclose(ssim(a, b), wanted, rtol=1e-4, atol=1e-5)
    heat = maps_of("gradcam")
    wanted = [skimage.metrics.structural_similarity(u, v, data_range=1) for u, v in zip(heat.double().numpy(), heat.double().numpy()[::-1])]
    assert np.allclose(ssim(heat, heat.flip(0)), wanted, rtol=1e-4, atol=1e-5)


def test_a_constant_map_agrees_with_nothing_and_nothing_is_nan():
    rand, flat, zero = torch.rand(2, 8, 8), torch.full((2, 8, 8), 1 / 3), torch.zeros(2, 8, 8)
    for a, b in ((rand, flat), (flat, rand), (flat, flat), (zero, flat), (zero, zero), (rand, zero)):
        assert pearson(a, b).eq(0).all() and spearman(a, b).eq(0).all()
        assert cosine(a, b).isfinite().all() and ssim(a, b).isfinite().all()
    assert torch.allclose(ssim(flat, flat), torch.ones(2)) and torch.allclose(ssim(zero, zero), torch.ones(2))
    assert pearson(rand * 1e-12, rand * 1e-12).sub(1).abs().max() < 1e-4


# Max-sensitivity


def our_noise(metric):
    return (torch.rand(metric.samples, 3, 128, 128, generator=torch.Generator().manual_seed(metric.seed)) * 2 - 1) * metric.radius


@pytest.mark.parametrize("kind", ["gradcam", "chance"])
def test_max_sensitivity_is_the_papers(kind):
    x, classes, _ = pictures()
    metric, method = MaxSensitivity(samples=3, progress=False), METHODS[kind]()
    before, wanted = method(x, classes).double().numpy(), np.zeros(N)
    for delta in our_noise(metric):
        after = method(x + delta, classes).double().numpy()
        for i in range(N):
            wanted[i] = max(wanted[i], np.sqrt(((after[i] - before[i]) ** 2).sum()) / np.sqrt((before[i] ** 2).sum()))
    assert np.allclose(metric(x, method, classes), wanted, rtol=1e-4)


def test_max_sensitivity_is_captums_and_quantus():
    import quantus
    from captum.metrics import sensitivity_max

    x, classes, _ = pictures()
    metric, cam = MaxSensitivity(0.1, samples=3, progress=False), METHODS["gradcam"]()
    ours, noise = metric(x, cam, classes), our_noise(metric)
    captums = sensitivity_max(
        lambda inputs, target: (cam(inputs[0] if isinstance(inputs, tuple) else inputs, target),),
        x,
        lambda inputs, radius: inputs + noise.repeat(N, 1, 1, 1),
        0.1,
        3,
        target=classes,
    )
    assert np.allclose(ours, captums, rtol=1e-4)

    draws = iter(noise)
    explain = lambda model, inputs, targets, **how: cam(torch.as_tensor(inputs), torch.as_tensor(targets))[:, None].numpy()
    judge = quantus.MaxSensitivity(
        nr_samples=3, perturb_func=lambda arr, indices, **how: arr + next(draws).numpy().reshape(1, -1), disable_warnings=True
    )
    quantus_says = judge(model=network("scenes-cnn"), x_batch=x.numpy(), y_batch=classes.numpy(), explain_func=explain, channel_first=True)
    assert np.allclose(ours, quantus_says, rtol=1e-4)


def test_more_draws_find_more_and_a_zero_map_is_no_division():
    x, classes, _ = pictures()
    few, many = (MaxSensitivity(samples=n, progress=False)(x[:2], METHODS["gradcam"](), classes[:2]) for n in (2, 6))
    assert (many >= few - 1e-6).all()
    assert MaxSensitivity(samples=2)(x, lambda rows, targets: torch.zeros(len(rows), 128, 128), 0).eq(0).all()


# Consistency, coherency and what is made of it


@pytest.mark.parametrize("kind", ["gradcam", "chance"])
def test_consistency_is_the_mean_over_views(kind):
    x, classes, _ = pictures()
    method = METHODS[kind]()
    before, views = method(x, classes).numpy(), [(False, 0.9), (False, 1.1), (True, 0.9), (True, 1.0), (True, 1.1)]
    wanted = np.zeros(N)
    for mirrored, factor in views:
        rows = (x.flip(-1) if mirrored else x) * factor
        after = method(rows, classes).numpy()
        wanted += [correlation(u, v[..., ::-1] if mirrored else v) / len(views) for u, v in zip(before, after)]
    assert np.allclose(Consistency(progress=False)(x, method, classes), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gradcam", "chance"])
def test_coherency_and_complexity_are_those_of_pypi_grad_cam(kind):
    x, classes, _ = pictures()
    method = METHODS[kind]()
    maps = method(x, classes).numpy()
    base = lambda input_tensor, targets: method(input_tensor, targets).numpy()
    again = base(x * maps[:, None], classes)
    wanted = [(1 + correlation(u, v)) / 2 for u, v in zip(again, maps)]
    ours = Coherency()(x, method, classes)
    assert np.allclose(ours, wanted, rtol=1e-4)
    assert np.allclose(ours, theirs.Coherency()(x, maps, classes, None, base), rtol=1e-4)
    parts = ARCC(progress=False).parts(x, method, classes, network("scenes-cnn"))
    assert np.allclose(1 - parts["1 - complexity"], theirs.Complexity()(maps), rtol=1e-4)
    assert torch.equal(parts["coherency"], ours)


def test_arcc_is_that_of_pypi_grad_cam_but_for_road():
    x, classes, _ = pictures()
    model, cam = network("scenes-cnn"), METHODS["gradcam"]()
    maps = cam(x, classes)
    judge = theirs.ARCC(lambda input_tensor, targets: cam(input_tensor, targets).numpy())
    judge.road = lambda input_tensor, cams, targets, model: ROADCombined([20, 40, 60, 80], progress=False)(
        input_tensor, cams, targets, model
    ).numpy()
    assert np.allclose(ARCC(progress=False)(x, cam, classes, model), judge(x, maps.numpy(), classes, model), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["gradcam", "chance"])
def test_adcc_is_the_papers(kind):
    x, classes, _ = pictures()
    model, method = network("scenes-cnn"), METHODS[kind]()
    maps = method(x, classes)
    again = method(x * maps[:, None], classes)
    with torch.no_grad():
        before, after = (model(t).double().softmax(-1)[range(N), classes].numpy() for t in (x, x * maps[:, None]))
    wanted = []
    for i in range(N):
        parts = (
            (1 + correlation(again[i].numpy(), maps[i].numpy())) / 2,
            1 - maps[i].double().mean().item(),
            1 - max(before[i] - after[i], 0) / before[i],
        )
        wanted.append(3 / sum(1 / part for part in parts))
    assert np.allclose(ADCC(progress=False)(x, method, classes, model), wanted, rtol=1e-4)


def test_the_true_mask_beats_chance_and_a_uniform_map_is_nothing():
    x, classes, mask = pictures()
    model = network("scenes-cnn")
    perfect, uniform = (lambda rows, targets: mask), (lambda rows, targets: torch.ones(len(rows), 128, 128))
    for metric in (ADCC(progress=False), ARCC(progress=False), Coherency()):
        assert (metric(x, perfect, classes, model) > metric(x, Chance(), classes, model)).all()
    assert ADCC(progress=False)(x, uniform, classes, model).eq(0).all() and ARCC(progress=False)(x, uniform, classes, model).eq(0).all()
    assert MaxSensitivity(samples=2, batch_size=N)(x, perfect, classes).eq(0).all()


# What they share

AGAIN = [
    MaxSensitivity(samples=2, progress=False),
    Consistency(progress=False),
    Coherency(),
    ADCC(progress=False),
    ARCC(progress=False),
    ParameterRandomisation(stages=2, progress=False),
]


@pytest.mark.parametrize("metric", AGAIN, ids=lambda m: m.name)
def test_a_batch_is_its_pictures_one_by_one(metric):
    x, classes, _ = pictures()
    model = network("scenes-cnn")
    cam = GradCAM(model, "layer4")
    whole = metric(x[:3], cam, classes[:3], model)
    assert whole.shape == (3,) and whole.dtype == torch.float32 and whole.isfinite().all()
    assert torch.allclose(torch.cat([metric(x[[i]], cam, classes[i], model) for i in range(3)]), whole, atol=2e-4)


@pytest.mark.parametrize("metric", AGAIN, ids=lambda m: m.name)
def test_maps_are_refused_and_the_method_is_marked(metric):
    x, classes, _ = pictures()
    with pytest.raises(TypeError, match=f"^cams: {metric.name} explains changed pictures again; pass the method, such as GradCAM"):
        metric(x, torch.rand(N, 128, 128), classes, network("scenes-cnn"))
    assert metric.needs_method and not getattr(Metric, "needs_method", False)


@pytest.mark.parametrize("metric", AGAIN, ids=lambda m: m.name)
def test_blank_maps_give_finite_numbers(metric):
    class Blank:
        def __init__(self, model):
            self.model = model

        def __call__(self, rows, targets):
            return torch.zeros(len(rows), 128, 128)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert metric(pictures()[0][:2], Blank(network("scenes-cnn")), 1, network("scenes-cnn")).isfinite().all()


@pytest.mark.parametrize("metric", AGAIN[:3], ids=lambda m: m.name)
def test_the_top_class_of_the_unchanged_picture_is_explained_throughout(metric):
    x, _, _ = pictures()
    asked = []

    def spy(rows, targets):
        asked.extend(target.category for target in targets)
        return torch.rand(len(rows), 128, 128)

    metric(x, spy, None, network("scenes-cnn"))
    top = network("scenes-cnn")(x).argmax(1).tolist()
    assert len(asked) > N and all(asked[i] == top[i % N] for i in range(len(asked)))


# Parameter randomisation


def state_of(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def untouched(model, state):
    quiet = all(not m._forward_hooks and not m._forward_pre_hooks and "forward" not in m.__dict__ for m in model.modules())
    return (
        quiet
        and all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
        and all(p.grad is None for p in model.parameters())
    )


@pytest.mark.parametrize("name", ["scenes-cnn", "scenes-vit"])
def test_edges_are_flagged_and_gradcam_is_not(name):
    model, (x, classes, _) = load(name), pictures()
    state, random = state_of(model), torch.get_rng_state()
    noise = (torch.rand(N, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1).repeat_interleave(8, 2).repeat_interleave(8, 3)
    check, once = ParameterRandomisation(stages=4, progress=False), ParameterRandomisation(stages=1, progress=False)
    for rows, targets in ((x, classes), (noise, None)):  # no data, no labels
        assert check.stages(rows, Sobel(), targets, model).flagged
        for method in (
            GradCAM(model),
            LayerCAM(model),
            EigenCAM(model),
            RandomCAM(model),
            Guided(model),
            *([AttentionRollout(model)] if name == "scenes-vit" else []),
        ):
            told = once.stages(rows, method, targets, model)
            assert not told.flagged and "notices" in told.verdict, told
    with pytest.warns(UserWarning, match="Sobel does not notice"):
        assert check(x, Sobel(), classes, model).sub(1).abs().max() < 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check(x, GradCAM(model), classes).mean() < 0.5
    assert untouched(model, state) and torch.equal(torch.get_rng_state(), random)


def test_the_curve_is_that_of_a_slow_loop():
    model, (x, classes, _) = load("scenes-cnn"), pictures()
    order = learnt_layers(model, x)
    seeds = torch.randint(2**31, (len(order),), generator=torch.Generator().manual_seed(7)).tolist()
    for form in ("cascading", "independent"):
        told = ParameterRandomisation(form, layers=["layer4", "fc", "conv1"], seed=7, progress=False).stages(
            x, GradCAM(model), classes, return_maps=True
        )
        assert told.names == (
            ["fc", "layer4.0.conv1", "conv1.0"]
            if form == "cascading"
            else ["fc", "layer4.0.downsample.1 … layer4.0.conv1", "conv1.6 … conv1.0"]
        )
        before = GradCAM(model, "layer4")(x, classes)
        forgetful = copy.deepcopy(model)
        for stage, block in enumerate(("fc", "layer4", "conv1")):
            if form == "independent":
                forgetful = copy.deepcopy(model)
            for name, seed in zip(order, seeds):
                if name == block or name.startswith(block + "."):
                    with torch.random.fork_rng(devices=[]):
                        torch.manual_seed(seed)
                        forgetful.get_submodule(name).reset_parameters()
            after = GradCAM(forgetful, "layer4")(x, classes)
            wanted = [scipy.stats.spearmanr(u.ravel(), v.ravel())[0] for u, v in zip(before.numpy(), after.numpy())]
            assert np.allclose(told.similarity[stage], np.nan_to_num(wanted), atol=1e-3)
            assert torch.allclose(told.maps[stage + 1], after, atol=1e-4)


def test_a_wholly_forgotten_network_is_that_of_quantus(monkeypatch):
    import quantus

    from gradcam_nb.metrics import parameter_randomisation as room

    model, (x, classes, _) = load("scenes-cnn"), pictures()

    def as_quantus_draws(layer, seed, how):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(43)
            layer.reset_parameters()

    monkeypatch.setattr(room, "redraw", as_quantus_draws)
    ours = ParameterRandomisation(stages=1, progress=False).stages(x, GradCAM(model, "layer4"), classes)
    explain = lambda model, inputs, targets, **how: GradCAM(model, "layer4")(torch.as_tensor(inputs), torch.as_tensor(targets))[
        :, None
    ].numpy()
    judge = quantus.MPRT(return_last_correlation=True, skip_layers=True, disable_warnings=True, normalise=False)
    with torch.random.fork_rng(devices=[]):
        quantus_says = judge(model=model, x_batch=x.numpy(), y_batch=classes.numpy(), explain_func=explain, channel_first=True)
    assert np.allclose(ours.everything, np.nan_to_num(quantus_says), atol=1e-3)


def test_every_parameter_is_drawn_anew():
    import timm
    import torchvision

    makers = {
        "vit": lambda: timm.create_model("test_vit"),
        "convnext": lambda: timm.create_model("test_convnext"),
        "efficientnet": lambda: timm.create_model("test_efficientnet"),
        "torchvision vit": lambda: torchvision.models.VisionTransformer(32, 16, 2, 2, 32, 64, num_classes=5),
    }
    for label, make in makers.items():
        torch.manual_seed(0)
        model = make().eval()
        with torch.no_grad():
            for t in model.state_dict().values():  # as if trained: no number stands where an initialisation puts it
                if t.is_floating_point():
                    t.add_(torch.rand_like(t) + 0.1)
        size = 32 if label == "torchvision vit" else 160
        order = learnt_layers(model, torch.randn(1, 3, size, size))
        assert {f"{name}.{own}".strip(".") for name in order for own, _ in model.get_submodule(name).named_parameters(recurse=False)} == {
            name for name, _ in model.named_parameters()
        }, label
        for how in ("reset", "shuffle"):
            forgetful = copy.deepcopy(model)
            for name in order:
                redraw(forgetful.get_submodule(name), 0, how)
            same = [
                name
                for (name, a), (_, b) in zip(model.state_dict().items(), forgetful.state_dict().items())
                if a.is_floating_point() and a.numel() > 1 and torch.equal(a, b)
            ]
            assert not same, (label, how, same)
            # The class token and the position embedding have no initialisation to call: their numbers change places.
            if label == "vit":
                assert torch.equal(model.pos_embed.flatten().sort().values, forgetful.pos_embed.flatten().sort().values)


def test_a_reparametrised_layer_forgets_too():
    for wrap in (nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm, torch.nn.utils.spectral_norm):
        torch.manual_seed(0)
        model = nn.Sequential(wrap(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        x, before = torch.randn(2, 3, 8, 8), copy.deepcopy(model)
        for name in learnt_layers(model, x):
            redraw(model.get_submodule(name), 0)
        assert not torch.allclose(model(x), before(x), atol=1e-3)


def test_norms_without_parameters_forget_too():
    import torchvision

    for norm in (nn.BatchNorm2d(4, affine=False), torchvision.ops.FrozenBatchNorm2d(4)):
        for t in norm.buffers():
            if t.is_floating_point():
                t += torch.rand(4)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        assert learnt_layers(model, torch.randn(1, 3, 8, 8)) == ["1", "0"]
        for how in ("reset", "shuffle"):
            forgetful = copy.deepcopy(norm)
            redraw(forgetful, 0, how)
            assert not any(torch.equal(a, b) for a, b in zip(norm.buffers(), forgetful.buffers()) if a.is_floating_point())


def test_drawing_is_seeded_and_leaves_the_random_state():
    layer = nn.Conv2d(3, 4, 3)
    random = torch.get_rng_state()
    twins = [copy.deepcopy(layer) for _ in range(3)]
    for twin, seed in zip(twins, (5, 5, 6)):
        redraw(twin, seed)
    assert torch.equal(twins[0].weight, twins[1].weight) and not torch.equal(twins[0].weight, twins[2].weight)
    assert torch.equal(torch.get_rng_state(), random)
    norm = nn.BatchNorm2d(4)
    norm.running_mean += torch.arange(4)
    for how, mean in (("shuffle", [0, 1, 2, 3]), ("reset", [0, 0, 0, 0])):
        redraw(norm, 0, how)
        assert norm.running_mean.sort().values.tolist() == mean


def test_the_model_is_untouched_after_an_exception_too():
    model, (x, classes, _) = load("scenes-cnn").train(), pictures()
    state, random = state_of(model), torch.get_rng_state()

    class Breaks(GradCAM):
        calls = 0

        def __call__(self, *args, **kwargs):
            Breaks.calls += 1
            if Breaks.calls == 3:
                raise RuntimeError("broken")
            return super().__call__(*args, **kwargs)

    with pytest.raises(RuntimeError, match="broken"):
        ParameterRandomisation(progress=False)(x, Breaks(model), classes)
    assert Breaks.calls == 3 and model.training and untouched(model, state) and torch.equal(torch.get_rng_state(), random)


def test_the_method_is_untouched_and_its_copy_explains_the_copy():
    model, (x, classes, _) = load("scenes-cnn"), pictures()
    state, check = state_of(model), ParameterRandomisation(stages=1, progress=False)
    cam = GradCAM(model, "layer4")
    wanted = check(x, cam, classes)
    assert cam.model is model and cam.target_layers == [model.layer4] and cam.outputs is None
    partial = functools.partial(explained, model)
    bound = Holder(model).explain
    in_parallel = nn.DataParallel(model)
    for same, given in ((partial, model), (bound, model), (cam, in_parallel), (GradCAM(in_parallel, "layer4"), None)):
        assert torch.allclose(check(x, same, classes, given), wanted, atol=1e-4)
    with torch.inference_mode():
        assert torch.allclose(check(x, cam, classes), wanted, atol=1e-4)
    their_cam = TheirGradCAM(model, [model.layer4])
    targets = [ClassifierOutputTarget(c) for c in classes.tolist()]
    told = check.stages(x, their_cam, targets, model)
    their_cam.activations_and_grads.release()
    for p in model.parameters():
        p.grad = None
    assert not told.flagged and untouched(model, state)


def explained(model, rows, targets):
    return GradCAM(model, "layer4")(rows, targets)


class Holder:
    def __init__(self, model):
        self.network = model

    def explain(self, rows, targets):
        return explained(self.network, rows, targets)


def test_what_holds_on_to_the_original_is_refused():
    model, (x, classes, _) = load("scenes-cnn"), pictures()
    state, check = state_of(model), ParameterRandomisation(progress=False)
    with pytest.raises(ValueError, match="^cams: it runs the model that was passed and not a copy of it"):
        check(x, lambda rows, targets: explained(model, rows, targets), classes, model)
    with pytest.raises(ValueError, match="^model: is not the one that cams explains"):
        check(x, GradCAM(model), classes, load("scenes-cnn"))
    with pytest.raises(TypeError, match="pass the network, got NoneType"):
        check(x, Sobel(), classes)
    model.trouble = threading.Lock()
    with pytest.raises(ValueError, match="^model: it cannot be copied together with the method"):
        check(x, GradCAM(model), classes)
    del model.trouble
    assert untouched(model, state)


def test_a_map_that_never_changes_is_flagged_even_if_constant():
    x, classes, mask = pictures()

    class Fixed:
        def __init__(self, maps):
            self.maps = maps

        def __call__(self, rows, targets):
            return self.maps[: len(rows)]

    check = ParameterRandomisation(stages=2, progress=False)
    for maps, words in ((mask, "does not notice"), (torch.ones(N, 128, 128), "was not tested")):
        told = check.stages(x, Fixed(maps), classes, network("scenes-cnn"))
        assert told.flagged and words in told.verdict and told.similarity.sub(1).abs().max() < 1e-5


def test_methods_that_run_the_model_many_times_notice():
    x, classes, _ = pictures()
    told = ParameterRandomisation(stages=1, progress=False).stages(
        x[:1], ScoreCAM(network("scenes-cnn"), "layer4", progress=False), classes[:1]
    )
    assert not told.flagged
