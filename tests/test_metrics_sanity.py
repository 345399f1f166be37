"""The metrics that ask the method again: held to scipy, scikit-image, captum, quantus and PyPI grad-cam; the model is never touched."""

import copy
import functools
import threading
import warnings

import numpy as np
import pytest
import scipy.stats
import skimage.metrics
import torch
from oracles_metrics import N, a_number_each, close, correlation, network, one_by_one, pictures, seeded, state_of, untouched
from pytorch_grad_cam import GradCAM as TheirGradCAM
from pytorch_grad_cam.metrics import arcc as theirs
from torch import nn

from gradcam_nb import AttentionRollout, EigenCAM, GradCAM, GuidedBackpropReLUModel, LayerCAM, RandomCAM, ScoreCAM, Sobel
from gradcam_nb.metrics.arcc import ADCC, ARCC
from gradcam_nb.metrics.coherency import Coherency
from gradcam_nb.metrics.complexity import Complexity
from gradcam_nb.metrics.consistency import Consistency
from gradcam_nb.metrics.drop import DropInConfidence
from gradcam_nb.metrics.energy_inside import EnergyInside
from gradcam_nb.metrics.forgetting import learnt_layers, redraw
from gradcam_nb.metrics.max_sensitivity import MaxSensitivity
from gradcam_nb.metrics.metric import Metric, ask_metric
from gradcam_nb.metrics.parameter_randomisation import ParameterRandomisation
from gradcam_nb.metrics.road import ROADCombined
from gradcam_nb.metrics.similarity import cosine, pearson, spearman, ssim
from gradcam_nb.samples.networks import load
from gradcam_nb.targets.classifier import ClassifierOutputTarget

pytestmark = pytest.mark.filterwarnings("ignore:blank heat map", "ignore:An input array is constant")


class Chance:
    """Maps that depend on each picture alone, and on nothing else."""

    def __call__(self, rows, targets):
        seeds = [int(row.double().abs().sum() * 1e6) % 2**31 for row in rows]
        return torch.stack([seeded(*rows.shape[2:], seed=seed) for seed in seeds])


class Guided:
    def __init__(self, model):
        self.gradient = GuidedBackpropReLUModel(model)

    def __call__(self, rows, targets):
        maps = self.gradient(rows, targets).abs().amax(1)
        return maps / maps.flatten(1).amax(1)[:, None, None]


class Fixed:
    """Maps that are given, whatever is asked; it may hold a model, and never runs it."""

    def __init__(self, maps, model=None):
        self.maps, self.model = maps, model

    def __call__(self, rows, targets):
        return self.maps[: len(rows)]


METHODS = {"gradcam": lambda: GradCAM(network("scenes-cnn")), "chance": Chance}


def maps_of(kind):
    x, classes, _ = pictures()
    return METHODS[kind]()(x, classes)


def arrays(*batches):
    """The maps of batches beside each other, in double precision."""
    return zip(*(maps.double().numpy() for maps in batches))


def rank_correlation(u, v):
    return scipy.stats.spearmanr(u.ravel(), v.ravel())[0]


# How alike two maps are


@pytest.mark.parametrize("kind", ["gradcam", "chance"])
def test_correlations_are_those_of_scipy(kind):
    a, b = maps_of(kind), LayerCAM(network("scenes-cnn"))(*pictures()[:2])
    close(pearson(a, b), [scipy.stats.pearsonr(u.ravel(), v.ravel())[0] for u, v in arrays(a, b)])
    close(spearman(a, b), [rank_correlation(u, v) for u, v in arrays(a, b)])
    a, b = (torch.randint(4, (3, 9, 9), generator=torch.Generator().manual_seed(s)).float() for s in (0, 1))  # many ties
    close(spearman(a, b), [rank_correlation(u, v) for u, v in arrays(a, b)], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(40,), (24, 31), (9, 8, 11)])
def test_ssim_is_that_of_scikit_image(shape):
    def oracle(u, v):
        both = np.stack([u, v])
        return skimage.metrics.structural_similarity(u, v, data_range=both.max() - both.min())

    a = seeded(3, *shape)
    b = 5 * seeded(3, *shape, seed=1) + 2 * a
    close(ssim(a, b), [oracle(u, v) for u, v in arrays(a, b)], atol=1e-5)
    heat = maps_of("gradcam")
    wanted = [skimage.metrics.structural_similarity(u, v, data_range=1) for u, v in arrays(heat, heat.flip(0))]
    close(ssim(heat, heat.flip(0)), wanted, atol=1e-5)


def test_a_constant_map_agrees_with_nothing_and_nothing_is_nan():
    rand, flat, zero = torch.rand(2, 8, 8), torch.full((2, 8, 8), 1 / 3), torch.zeros(2, 8, 8)
    for a, b in ((rand, flat), (flat, rand), (flat, flat), (zero, flat), (zero, zero), (rand, zero)):
        assert pearson(a, b).eq(0).all()
        assert spearman(a, b).eq(0).all()
        assert cosine(a, b).isfinite().all()
        assert ssim(a, b).isfinite().all()
    close(ssim(flat, flat), torch.ones(2), rtol=1e-5, atol=1e-8)
    close(ssim(zero, zero), torch.ones(2), rtol=1e-5, atol=1e-8)
    assert pearson(rand * 1e-12, rand * 1e-12).sub(1).abs().max() < 1e-4


# Max-sensitivity


def our_noise(metric):
    return (seeded(metric.samples, 3, 128, 128, seed=metric.seed) * 2 - 1) * metric.radius


@pytest.mark.parametrize("kind", ["gradcam", "chance"])
def test_max_sensitivity_is_the_papers(kind):
    x, classes, _ = pictures()
    metric, method = MaxSensitivity(samples=3, progress=False), METHODS[kind]()
    before, wanted = method(x, classes).double().numpy(), np.zeros(N)
    for delta in our_noise(metric):
        after = method(x + delta, classes).double().numpy()
        for i in range(N):
            change = np.sqrt(((after[i] - before[i]) ** 2).sum()) / np.sqrt((before[i] ** 2).sum())
            wanted[i] = max(wanted[i], change)
    close(metric(x, method, classes), wanted, rtol=1e-4, atol=1e-8)


def test_max_sensitivity_is_captums_and_quantus():
    import quantus
    from captum.metrics import sensitivity_max

    x, classes, _ = pictures()
    metric, cam = MaxSensitivity(0.1, samples=3, progress=False), METHODS["gradcam"]()
    ours, noise = metric(x, cam, classes), our_noise(metric)

    def attribute(inputs, target):
        return (cam(inputs[0] if isinstance(inputs, tuple) else inputs, target),)

    def perturb(inputs, radius):
        return inputs + noise.repeat(N, 1, 1, 1)

    captums = sensitivity_max(attribute, x, perturb, 0.1, 3, target=classes)
    close(ours, captums, rtol=1e-4, atol=1e-8)

    draws = iter(noise)

    def explain(model, inputs, targets, **how):
        return cam(torch.as_tensor(inputs), torch.as_tensor(targets))[:, None].numpy()

    def add_noise(arr, indices, **how):
        return arr + next(draws).numpy().reshape(1, -1)

    judge = quantus.MaxSensitivity(nr_samples=3, perturb_func=add_noise, disable_warnings=True)
    said = judge(model=network("scenes-cnn"), x_batch=x.numpy(), y_batch=classes.numpy(), explain_func=explain, channel_first=True)
    close(ours, said, rtol=1e-4, atol=1e-8)


def test_more_draws_find_more_and_a_zero_map_is_no_division():
    x, classes, _ = pictures()
    few, many = (MaxSensitivity(samples=n, progress=False)(x[:2], METHODS["gradcam"](), classes[:2]) for n in (2, 6))
    assert (many >= few - 1e-6).all()
    assert MaxSensitivity(samples=2, batch_size=N)(x, Fixed(torch.zeros(N, 128, 128)), 0).tolist() == [0] * N


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
    close(Consistency(progress=False)(x, method, classes), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gradcam", "chance"])
def test_coherency_and_complexity_are_those_of_pypi_grad_cam(kind):
    x, classes, _ = pictures()
    method = METHODS[kind]()
    maps = method(x, classes).numpy()

    def base(input_tensor, targets):
        return method(input_tensor, targets).numpy()

    again = base(x * maps[:, None], classes)
    wanted = [(1 + correlation(u, v)) / 2 for u, v in zip(again, maps)]
    ours = Coherency()(x, method, classes)
    close(ours, wanted, rtol=1e-4, atol=1e-8)
    close(ours, theirs.Coherency()(x, maps, classes, None, base), rtol=1e-4, atol=1e-8)
    parts = ARCC(progress=False).parts(x, method, classes, network("scenes-cnn"))
    close(1 - parts["1 - complexity"], theirs.Complexity()(maps), rtol=1e-4, atol=1e-8)
    assert torch.equal(parts["coherency"], ours)


def test_arcc_is_that_of_pypi_grad_cam_but_for_road():
    x, classes, _ = pictures()
    model, cam = network("scenes-cnn"), METHODS["gradcam"]()
    maps = cam(x, classes)

    def road(input_tensor, cams, targets, model):
        return ROADCombined([20, 40, 60, 80], progress=False)(input_tensor, cams, targets, model).numpy()

    judge = theirs.ARCC(lambda input_tensor, targets: cam(input_tensor, targets).numpy())
    judge.road = road
    close(ARCC(progress=False)(x, cam, classes, model), judge(x, maps.numpy(), classes, model), rtol=1e-4, atol=1e-6)


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
    close(ADCC(progress=False)(x, method, classes, model), wanted, rtol=1e-4, atol=1e-8)


def test_the_true_mask_beats_chance_and_a_uniform_map_is_nothing():
    x, classes, mask = pictures()
    model = network("scenes-cnn")
    perfect, uniform = Fixed(mask.float()), Fixed(torch.ones(N, 128, 128))
    for metric in (ADCC(progress=False), ARCC(progress=False), Coherency()):
        assert (metric(x, perfect, classes, model) > metric(x, Chance(), classes, model)).all()
    assert ADCC(progress=False)(x, uniform, classes, model).tolist() == [0] * N
    assert ARCC(progress=False)(x, uniform, classes, model).tolist() == [0] * N
    assert MaxSensitivity(samples=2, batch_size=N)(x, perfect, classes).tolist() == [0] * N


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
    a_number_each(whole, 3)
    close(one_by_one(metric, x, cam, classes, model, n=3), whole, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("metric", AGAIN, ids=lambda m: m.name)
def test_maps_are_refused_and_the_method_is_marked(metric):
    x, classes, _ = pictures()
    with pytest.raises(TypeError, match=f"^cams: {metric.name} explains changed pictures again; pass the method, such as GradCAM"):
        metric(x, torch.rand(N, 128, 128), classes, network("scenes-cnn"))
    assert metric.needs_method
    assert not Metric.needs_method


@pytest.mark.parametrize("metric", AGAIN, ids=lambda m: m.name)
def test_blank_maps_give_finite_numbers(metric):
    model = network("scenes-cnn")
    blank = Fixed(torch.zeros(metric.batch_size, 128, 128), model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a_number_each(metric(pictures()[0][:2], blank, 1, model), 2)


@pytest.mark.parametrize("metric", AGAIN[:3], ids=lambda m: m.name)
def test_the_top_class_of_the_unchanged_picture_is_explained_throughout(metric):
    x, _, _ = pictures()
    asked = []

    def spy(rows, targets):
        asked.extend(target.category for target in targets)
        return torch.rand(len(rows), 128, 128)

    metric(x, spy, None, network("scenes-cnn"))
    top = network("scenes-cnn")(x).argmax(1).tolist()
    times = len(asked) // N
    assert times > 1
    assert asked == times * top


def test_a_metric_is_asked_with_what_it_takes():
    x, classes, mask = pictures()
    model, cam = network("scenes-cnn"), METHODS["gradcam"]()
    maps = cam(x, classes)
    known = dict(input_tensor=x, targets=classes, model=model, masks=mask)
    drop, inside, coherent, brightness = DropInConfidence(), EnergyInside(), Coherency(), Complexity()
    assert torch.equal(ask_metric(drop, cams=maps, **known), drop(x, maps, classes, model))
    assert torch.equal(ask_metric(inside, cams=maps, **known), inside(maps, mask))
    assert torch.equal(ask_metric(brightness, cams=maps, **known), brightness(maps))
    close(ask_metric(coherent, cams=cam, **known), coherent(x, cam, classes, model), atol=1e-5)
    close(ask_metric(coherent, cams=cam, input_tensor=x), coherent(x, cam), atol=1e-5)
    with pytest.raises(ValueError, match="^masks: got none; pass masks, which EnergyInside needs$"):
        ask_metric(inside, cams=maps, input_tensor=x)
    with pytest.raises(ValueError, match="^cams: got none; pass cams, which named needs$"):
        ask_metric(named, input_tensor=x)


def named(cams, *others, scale=1, **more):
    """A metric that is a function; what it does not name does not reach it."""
    raise AssertionError("was called without cams")


# Parameter randomisation


@pytest.mark.parametrize("name", ["scenes-cnn", "scenes-vit"])
def test_edges_are_flagged_and_gradcam_is_not(name):
    model, (x, classes, _) = load(name), pictures()
    state, random = state_of(model), torch.get_rng_state()
    noise = (seeded(N, 3, 16, 16) * 2 - 1).repeat_interleave(8, 2).repeat_interleave(8, 3)
    methods = [kind(model) for kind in (GradCAM, LayerCAM, EigenCAM, RandomCAM, Guided)]
    if name == "scenes-vit":
        methods.append(AttentionRollout(model))
    check, once = ParameterRandomisation(stages=4, progress=False), ParameterRandomisation(stages=1, progress=False)
    for rows, targets in ((x, classes), (noise, None)):  # no data, no labels
        assert check.stages(rows, Sobel(), targets, model).flagged
        for method in methods:
            told = once.stages(rows, method, targets, model)
            assert not told.flagged, told
            assert "notices" in told.verdict, told
    with pytest.warns(UserWarning, match="Sobel does not notice"):
        assert check(x, Sobel(), classes, model).sub(1).abs().max() < 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check(x, GradCAM(model), classes).mean() < 0.5
    untouched(model, state)
    assert torch.equal(torch.get_rng_state(), random)


def test_the_curve_is_that_of_a_slow_loop():
    model, (x, classes, _) = load("scenes-cnn"), pictures()
    order = learnt_layers(model, x)
    seeds = torch.randint(2**31, (len(order),), generator=torch.Generator().manual_seed(7)).tolist()
    titles = {
        "cascading": ["fc", "layer4.0.conv1", "conv1.0"],
        "independent": ["fc", "layer4.0.downsample.1 … layer4.0.conv1", "conv1.6 … conv1.0"],
    }
    for form, names in titles.items():
        check = ParameterRandomisation(form, layers=["layer4", "fc", "conv1"], seed=7, progress=False)
        told = check.stages(x, GradCAM(model), classes, return_maps=True)
        assert told.names == names
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
            wanted = [rank_correlation(u, v) for u, v in arrays(before, after)]
            close(told.similarity[stage], np.nan_to_num(wanted), rtol=1e-5, atol=1e-3)
            close(told.maps[stage + 1], after, rtol=1e-5, atol=1e-4)


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

    def explain(model, inputs, targets, **how):
        return explained(model, torch.as_tensor(inputs), torch.as_tensor(targets))[:, None].numpy()

    judge = quantus.MPRT(return_last_correlation=True, skip_layers=True, disable_warnings=True, normalise=False)
    with torch.random.fork_rng(devices=[]):
        said = judge(model=model, x_batch=x.numpy(), y_batch=classes.numpy(), explain_func=explain, channel_first=True)
    close(ours.everything, np.nan_to_num(said), rtol=1e-5, atol=1e-3)


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
        found = set()
        for name in order:
            found |= {f"{name}.{own}".strip(".") for own, _ in model.get_submodule(name).named_parameters(recurse=False)}
        assert found == {name for name, _ in model.named_parameters()}, label
        for how in ("reset", "shuffle"):
            forgetful = copy.deepcopy(model)
            for name in order:
                redraw(forgetful.get_submodule(name), 0, how)
            now = forgetful.state_dict()
            for name, before in model.state_dict().items():
                if before.is_floating_point() and before.numel() > 1:
                    assert not torch.equal(before, now[name]), (label, how, name)
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
            now = dict(forgetful.named_buffers())
            for name, before in norm.named_buffers():
                if before.is_floating_point():
                    assert not torch.equal(before, now[name]), (type(norm).__name__, how, name)


def test_drawing_is_seeded_and_leaves_the_random_state():
    layer = nn.Conv2d(3, 4, 3)
    random = torch.get_rng_state()
    twins = [copy.deepcopy(layer) for _ in range(3)]
    for twin, seed in zip(twins, (5, 5, 6)):
        redraw(twin, seed)
    assert torch.equal(twins[0].weight, twins[1].weight)
    assert not torch.equal(twins[0].weight, twins[2].weight)
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
    assert Breaks.calls == 3
    assert model.training
    untouched(model, state)
    assert torch.equal(torch.get_rng_state(), random)


def test_the_method_is_untouched_and_its_copy_explains_the_copy():
    model, (x, classes, _) = load("scenes-cnn"), pictures()
    state, check = state_of(model), ParameterRandomisation(stages=1, progress=False)
    cam = GradCAM(model, "layer4")
    wanted = check(x, cam, classes)
    assert cam.model is model
    assert cam.target_layers == [model.layer4]
    assert cam.outputs is None
    partial = functools.partial(explained, model)
    bound = Holder(model).explain
    in_parallel = nn.DataParallel(model)
    for same, given in ((partial, model), (bound, model), (cam, in_parallel), (GradCAM(in_parallel, "layer4"), None)):
        close(check(x, same, classes, given), wanted, rtol=1e-5, atol=1e-4)
    with torch.inference_mode():
        close(check(x, cam, classes), wanted, rtol=1e-5, atol=1e-4)
    their_cam = TheirGradCAM(model, [model.layer4])
    targets = [ClassifierOutputTarget(c) for c in classes.tolist()]
    told = check.stages(x, their_cam, targets, model)
    their_cam.activations_and_grads.release()
    for p in model.parameters():
        p.grad = None
    assert not told.flagged
    untouched(model, state)


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
    untouched(model, state)


def test_a_map_that_never_changes_is_flagged_even_if_constant():
    x, classes, mask = pictures()
    check = ParameterRandomisation(stages=2, progress=False)
    for maps, words in ((mask.float(), "does not notice"), (torch.ones(N, 128, 128), "was not tested")):
        told = check.stages(x, Fixed(maps), classes, network("scenes-cnn"))
        assert told.flagged
        assert words in told.verdict
        assert told.similarity.sub(1).abs().max() < 1e-5


def test_methods_that_run_the_model_many_times_notice():
    x, classes, _ = pictures()
    cam = ScoreCAM(network("scenes-cnn"), "layer4", progress=False)
    told = ParameterRandomisation(stages=1, progress=False).stages(x[:1], cam, classes[:1])
    assert not told.flagged
