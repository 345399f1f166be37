"""torchcam's interface: its scripts run with nothing but the import changed, and give its maps."""

import copy
import importlib
import inspect
import logging

import numpy as np
import pytest
import torch
import torchvision
from oracles_libraries import (
    absent_name_gives_its_reason,
    correlations,
    each_name_is_offered_or_absent,
    left_as_it_was,
    random_resnet,
    warned_line,
    with_photos,
)
from PIL import Image

import gradcam_nb.compat.torchcam as ours

theirs = pytest.importorskip("torchcam.methods")
utils = pytest.importorskip("torchcam.utils")

METHODS = [
    "CAM",
    "FinerCAM",
    "GradCAM",
    "GradCAMpp",
    "ISCAM",
    "LayerCAM",
    "LeGrad",
    "RefineCAM",
    "SSCAM",
    "ScoreCAM",
    "SmoothGradCAMpp",
    "XGradCAM",
]
POOLED = {  # the layer, one in front of it, the linear layer
    "resnet18": ("layer4", "layer3", "fc"),
    "mobilenet_v2, real": ("features.18", "features.7", "classifier.1"),
}
LOUD = 1e6  # times the score: constants that torchcam adds to its gradient's powers then do not count


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Both tell which layer they took."""
    monkeypatch.setattr(logging.getLogger("torchcam.methods.core"), "disabled", True)
    monkeypatch.setattr(logging.getLogger("gradcam_nb.compat.extractor"), "disabled", True)


@pytest.fixture(scope="module")
def resnet():
    return random_resnet()


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    net = torchvision.models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    )
    torch.nn.init.normal_(net.heads.head.weight)
    return net.eval(), torch.randn(2, 3, 64, 64)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 16, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(16, 24, 3, 2, 1), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(24, 10))
    return model.eval(), torch.randn(2, 3, 32, 32)


def case(name, request):
    if name == "resnet18":
        return request.getfixturevalue("resnet")
    return with_photos("mobilenet_v2_imagenet", request.getfixturevalue("data"))


def alike(a, b):
    """The lowest correlation of two batches of maps."""
    return min(correlations(a, b))


def both(name, model, x, asked, *args, base=None, **options):
    """torchcam's maps and ours, of one script."""
    found = []
    for library in (theirs, ours):
        how = options | ({"base_method": getattr(library, base)} if base else {})
        with getattr(library, name)(model, *args, **how) as extractor:
            found.append((extractor(scores=model(x), **asked), extractor.target_names))
    (there, their_layers), (here, layers) = found
    assert layers == their_layers
    assert len(here) == len(there)
    return list(zip(there, here))


# --- names


def public(module):
    names = [name for name in dir(module) if not name.startswith("_")]
    return {name for name in names if getattr(getattr(module, name), "__module__", "").startswith("torchcam")}


def test_every_public_name_is_there_or_says_why_not():
    package, metrics, explain = (pytest.importorskip(name) for name in ("torchcam", "torchcam.metrics", "torchcam.explain"))
    wanted = set(package.__all__) | public(theirs) | public(utils) | public(metrics) | set(explain.__all__) | {"OutputTarget"}
    assert set(METHODS) <= public(theirs)
    each_name_is_offered_or_absent(ours, wanted)


@pytest.mark.parametrize("name", ours.ABSENT)
def test_an_absent_name_gives_its_reason(name):
    absent_name_gives_its_reason(ours, name)


def test_a_name_that_nobody_has():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ours.no_such_name


@pytest.mark.parametrize("name", METHODS)
def test_arguments_stand_where_theirs_stand(name):
    """All their public methods; the same positional parameters, with the same defaults, and all keywords."""
    mine, peer = getattr(ours, name), getattr(theirs, name)
    changed = {"base_method", "prefix_tokens"}  # ours, and found from the number of tokens
    taken_over = {"enable_hooks", "disable_hooks", "reset_hooks", "remove_hooks"}  # by RefineCAM and FinerCAM, from the extractor inside
    methods = {n for n in dir(peer) if not n.startswith("_") and callable(getattr(peer, n))}
    assert methods
    for method in {"__init__", *methods} - taken_over:
        here, there = (inspect.signature(getattr(kind, method)).parameters for kind in (mine, peer))
        named = [p.name for p in there.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        assert named, method
        assert [p for p in here if p in named] == named, method
        defaults = {p: here[p].default for p in named if p not in changed}
        assert defaults == {p: there[p].default for p in named if p not in changed}, method


# --- scripts


QUICK_TOUR = """
from torchcam.methods import LayerCAM
from torchcam.utils import overlay_mask
with LayerCAM(model) as cam_extractor:
    out = model(x[0].unsqueeze(0))
    cams = cam_extractor(out.squeeze(0).argmax().item(), out)
to_pil_image = torchvision.transforms.functional.to_pil_image
painted = overlay_mask(to_pil_image(x[0].sigmoid()), to_pil_image(cams[0].squeeze(0), mode='F'), alpha=0.5)
results = [*cams, torch.from_numpy(np.array(painted)).float()]
"""
BY_CLASS = """
from torchcam.methods import CAM
with CAM(model, 'layer4', 'fc') as cam_extractor:
    with torch.inference_mode(): out = model(x)
    results = cam_extractor(class_idx=100)
"""
FUSED = """
from torchcam.methods import LayerCAM
extractor = LayerCAM(model, ['layer2', model.layer3, 'layer4'])
scores = model(x)
cams = extractor(class_idx=[100, 3], scores=scores)
results = [*cams, extractor.fuse_cams(cams), LayerCAM.fuse_cams(cams, (50, 40))]
extractor.remove_hooks()
"""
MANY_CLASSES = """
from torchcam.methods import GradCAM
extractor = GradCAM(model, 'layer4', enable_hooks=False)
model(2 * x)
extractor.enable_hooks()
scores = model(x)
extractor.disable_hooks()
model(3 * x)
results = [extractor(c, scores, retain_graph=True, normalized=False)[0] for c in (3, 4, 5)]
results += extractor(scores=scores, targets=lambda output: output[3] - output[4])
extractor.reset_hooks()
extractor.remove_hooks()
"""
REFINED = """
from torchcam.methods import LayerCAM, RefineCAM
with RefineCAM(model, ["layer2", "layer3", "layer4"], base_method=LayerCAM) as cam_extractor:
    scores = model(x)
    results = cam_extractor(class_idx=100, scores=scores, retain_graph=True) + cam_extractor(100, scores, target_shape=(30, 30))
"""
FINER = """
from torchcam.methods import FinerCAM, LayerCAM
with FinerCAM(model, "layer4", base_method=LayerCAM) as cam_extractor:
    scores = model(x)
    results = cam_extractor(class_idx=100, scores=scores, comparison_idx=[101, 102, 103], retain_graph=True)
    results += cam_extractor(class_idx=[100, 7], scores=scores, comparison_idx=[[1, 2], [3, 4]])
"""
SCRIPTS = {"quick tour": QUICK_TOUR, "by class": BY_CLASS, "fused": FUSED, "many classes": MANY_CLASSES, "refined": REFINED, "finer": FINER}


def ran(script, **given):
    names = dict(torch=torch, torchvision=torchvision, np=np, **given)
    exec(script, names)
    return names["results"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_with_the_import_changed(script, resnet):
    model, x, _ = resnet
    changed = SCRIPTS[script]
    for module in ("torchcam.methods", "torchcam.utils"):
        changed = changed.replace(module, "gradcam_nb.compat.torchcam")
    there, here = ran(SCRIPTS[script], model=model, x=x), ran(changed, model=model, x=x)
    assert len(there) == len(here)
    for a, b in zip(there, here):
        assert alike(a, b) >= 0.999
        assert (a.detach() - b).abs().max() <= 0.02 * a.max()
    assert not model._forward_pre_hooks


def test_legrad_runs_with_the_import_changed(vit):
    model, x = vit
    script = """
from torchcam.methods import LeGrad
with LeGrad(model, list(model.encoder.layers)[-2:]) as cam_extractor:
    scores = model(x)
    results = cam_extractor(3, retain_graph=True) + cam_extractor([3, 4], normalized=False)
"""
    there = ran(script, model=model, x=x)
    here = ran(script.replace("torchcam.methods", "gradcam_nb.compat.torchcam"), model=model, x=x)
    torch.testing.assert_close(here, [t.detach() for t in there], rtol=1e-3, atol=1e-5)


def test_legrad_is_told_the_grid_of_its_tokens(vit):
    model, x = vit
    with ours.LeGrad(model, "encoder.layers.encoder_layer_1", grid_shape=(2, 8)) as extractor:
        model(x)
        rows = extractor(3)[0]
    with ours.LeGrad(model, "encoder.layers.encoder_layer_1", prefix_tokens=1) as extractor:
        model(x)
        torch.testing.assert_close(extractor(3)[0].flatten(1), rows.flatten(1))
    with ours.LeGrad(model, "encoder.layers.encoder_layer_1", prefix_tokens=2) as extractor, pytest.raises(ValueError, match="square"):
        model(x)
        extractor(3)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("layers", [[1], [0, 2]])
def test_legrad_by_a_projection_of_the_scripts_own_is_theirs(vit, layers, frozen):
    model, x = vit
    model = copy.deepcopy(model).double().requires_grad_(not frozen)
    head = torch.nn.Linear(model.hidden_dim, 4).double()
    maps, seen = [], []
    for module in (theirs, ours):
        blocks = [model.encoder.layers[i] for i in layers]
        with module.LeGrad(model, blocks, score_projection=lambda tokens: head(tokens[:, 1:].amax(1))) as extractor:
            scores = model(x.double())
            maps.append(extractor([3, 1], scores, retain_graph=True)[0].detach())
            seen.append([*extractor.hook_attn, *extractor.hook_a, scores])
        assert extractor.hook_handles == []
    assert maps[1].dtype == torch.float64
    torch.testing.assert_close(maps[1], maps[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen[1], seen[0])


@pytest.mark.parametrize("name", ["GradCAM", "LayerCAM", "ScoreCAM"])
def test_what_a_layer_gave_can_be_read_as_theirs(name, tiny):
    model, x = tiny
    read = []
    for module in (theirs, ours):
        with getattr(module, name)(model, "3") as extractor:
            assert extractor.hook_a == extractor.hook_g == [None]
            scores = model(x)
            before = extractor.hook_a[0]
            extractor(3, scores)
            read.append((before, extractor.hook_a[0], *extractor.hook_g))
    there, here = (tuple(t for t in one if t is not None) for one in read)
    torch.testing.assert_close(here, there)


def test_a_target_without_a_gradient_is_an_error_as_theirs(tiny):
    model, x = tiny
    for module in (theirs, ours):
        with module.GradCAM(model, "3") as extractor:
            scores = model(x)
            with pytest.raises(RuntimeError, match="not connected to every target layer"):
                extractor(scores=scores, targets=lambda output: output[0].detach())


def test_their_metrics_take_our_extractors(tiny):
    metrics = pytest.importorskip("torchcam.metrics")
    model, x = tiny
    for kind, layers in ((ours.LayerCAM, "3"), (ours.RefineCAM, ["1", "3"])):
        with kind(model, layers) as extractor:
            metric = metrics.ClassificationMetric(extractor, lambda scores: scores.softmax(-1))
            metric.update(x)
        assert set(metric.summary()) == {"avg_drop", "conf_increase"}


def test_tokens_are_laid_out_by_their_transform_and_by_themselves(vit):
    model, x = vit

    def laid(t):
        return t[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)

    ((there, here),) = both("LayerCAM", model, x, {"class_idx": 3}, "encoder.layers.encoder_layer_1", reshape_transform=laid)
    assert alike(there, here) >= 0.999
    with ours.LayerCAM(model, "encoder.layers.encoder_layer_1") as extractor:
        model(x)
        torch.testing.assert_close(extractor(3)[0], here)


def test_films():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv3d(3, 8, 3, 2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten(), torch.nn.Linear(8, 4)
    ).eval()
    ((there, here),) = both("GradCAM", model, torch.randn(2, 3, 8, 20, 24), {"class_idx": 2}, input_shape=(3, 8, 20, 24))
    assert alike(there, here) >= 0.999
    assert here.shape[1:] == (3, 9, 11)


# --- the same maps


@pytest.mark.parametrize("name", POOLED)
def test_maps_are_theirs(name, request):
    model, x, classes = case(name, request)
    last, front, linear = POOLED[name]
    asked, loud = {"class_idx": classes}, {"targets": [lambda output, c=c: LOUD * output[c] for c in classes]}
    table = {
        "CAM": both("CAM", model, x, asked, last, linear),
        "GradCAM, automatic": both("GradCAM", model, x, asked),
        "GradCAM": both("GradCAM", model, x, asked, [front, last]),
        "XGradCAM": both("XGradCAM", model, x, asked, last),
        "LayerCAM": both("LayerCAM", model, x, asked, [front, last]),
        "FinerCAM": both("FinerCAM", model, x, asked, last, base="LayerCAM", gamma=0.4, num_references=2),
        "RefineCAM": both("RefineCAM", model, x, asked, [front, last], base="LayerCAM"),
        "SmoothGradCAMpp": both("SmoothGradCAMpp", model, x, loud, last, 2, 1e-9),
    }
    worst = {row: min(alike(a, b) for a, b in pairs) for row, pairs in table.items()}
    assert min(worst.values()) >= 0.999, worst


@pytest.mark.parametrize(
    "name, options", [("ScoreCAM", {}), ("SSCAM", {"num_samples": 2, "std": 1e-9}), ("ISCAM", {})], ids=["ScoreCAM", "SSCAM", "ISCAM"]
)
def test_score_maps_are_theirs_at_any_batch(name, options, tiny):
    model, x = tiny
    ((there, here),) = both(name, model, x, {"class_idx": [3, 4]}, "3", **options)
    assert alike(there, here) >= 0.999
    ((_, small),) = both(name, model, x, {"class_idx": [3, 4]}, "3", 7, **options)
    torch.testing.assert_close(small, here, rtol=1e-3, atol=1e-4)


def test_cam_over_a_convolution_as_the_linear_layer(tiny):
    """Rows of a layer that was named; without a name, only where the scores are made so."""
    model = torch.nn.Sequential(*tiny[0][:4], torch.nn.Conv2d(24, 10, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
    ((there, here),) = both("CAM", model, tiny[1], {"class_idx": 3}, "3", model[4])
    torch.testing.assert_close(here, there)
    with ours.CAM(model, "3") as extractor, pytest.raises(ValueError, match="no linear layer"):
        model(tiny[1])
        extractor(3)


@pytest.mark.parametrize("mode", ["F", "L", "grey picture"])
def test_the_overlay_is_theirs(mode):
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (40, 60, 3), np.uint8)).convert("L" if mode == "grey picture" else "RGB")
    mask = Image.fromarray(random.random((5, 7), np.float32))
    here = np.asarray(ours.overlay_mask(picture, mask, colormap="viridis", alpha=0.3))
    assert (here == np.asarray(utils.overlay_mask(picture, mask, colormap="viridis", alpha=0.3))).all()
    if mode == "L":  # their squares of whole numbers overflow: ours is the same map, but for the rounding
        grey = Image.fromarray(np.uint8(np.asarray(mask) * 255))
        assert np.abs(np.float32(ours.overlay_mask(picture, grey, colormap="viridis", alpha=0.3)) - here).mean() < 2
    for wrong in (dict(mask=np.zeros((5, 7))), dict(alpha=1.0), dict(alpha=-1)):
        with pytest.raises((TypeError, ValueError)):
            ours.overlay_mask(**dict(img=picture, mask=mask) | wrong)


# --- the model


@pytest.mark.parametrize("name", METHODS)
def test_the_model_is_left_as_it_was(name, tiny, vit):
    model, x = copy.deepcopy(vit if name == "LeGrad" else tiny)
    layers = {"LeGrad": ["encoder.layers.encoder_layer_2"], "RefineCAM": ["1", "3"], "CAM": ["3", "6"]}.get(name, ["3"])
    options = {"SSCAM": {"num_samples": 2}}.get(name, {})
    model.requires_grad_(False).train()
    peer, asked = getattr(ours, name), layers if name == "CAM" else [layers]
    with left_as_it_was(model):
        with peer(model, *asked, **options) as extractor:
            with torch.no_grad():
                scores = model(x)
            given = [scores] if name == "FinerCAM" else []  # it needs them
            (maps,) = extractor([3, 4], *given)
            ones = [extractor(c, *given)[0][i] for i, c in enumerate((3, 4))]
            with pytest.raises(ValueError):
                extractor(10_000, *given)
    torch.testing.assert_close(torch.stack(ones), maps, rtol=1e-3, atol=1e-4)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert 0 <= maps.min()
    assert maps.max() <= 1
    with pytest.raises(ValueError, match="run the model on it first"):
        extractor(3, *given)


def test_hooks_go_after_an_exception(tiny):
    model, x = tiny
    with pytest.raises(KeyError), ours.GradCAM(model, "3"):
        raise KeyError
    assert not model._forward_pre_hooks
    with pytest.raises(ValueError), ours.GradCAM(model, "9"):
        pass
    with pytest.raises(TypeError), ours.FinerCAM(model, "3", base_method=theirs.GradCAM):
        pass
    assert not model._forward_pre_hooks


@pytest.mark.parametrize(
    "name, changed", [("module.3", torch.nn.DataParallel), ("3", lambda model: copy.deepcopy(model).double())], ids=["wrapped", "double"]
)
def test_wrapped_and_in_another_number_format(name, changed, tiny):
    model, x = tiny
    with ours.GradCAM(model, "3") as extractor:
        model(x)
        plain = extractor(3)[0]
    other = changed(model)
    for layer in (name, other.get_submodule(name), None):
        with ours.GradCAM(other, layer, input_shape=(3, 32, 32)) as extractor:
            other(x.to(next(other.parameters()).dtype))
            there = extractor(3)[0]
        torch.testing.assert_close(there, plain.to(next(other.parameters()).dtype), rtol=1e-4, atol=1e-5)
        assert extractor.target_names == [name]


def test_scores_of_another_input_are_told(tiny):
    model, x = tiny
    with ours.GradCAM(model, "3") as extractor:
        out = model(x)
        with pytest.warns(UserWarning, match="a score of your own making"):
            extractor(3, 2 * out.detach())
        with pytest.raises(ValueError, match="got shape"):
            extractor(3, out.detach()[0])
        model(x.flip(-1))
        with pytest.raises(RuntimeError, match="not connected to every target layer"):
            extractor(3, out)


MADE = {
    "the softmax": lambda out: out.softmax(1),
    "a difference": lambda out: out[:, [3]] - out[:, [1]],
    "one of several heads": lambda out: torch.stack([out[:, 0] * out[:, 2], out[:, 1]], 1),
    "scaled by picture": lambda out: out * torch.arange(1.0, len(out) + 1)[:, None],
}


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("name", ["GradCAM", "GradCAMpp", "XGradCAM", "LayerCAM"])
def test_scores_of_the_scripts_own_are_explained_by_its_graph(name, made, tiny):
    model, x = tiny
    maps = []
    # Their GradCAMpp is another formula: ours is asked for the same scores as a target then.
    libraries = [ours] if name == "GradCAMpp" else [ours, importlib.import_module("torchcam.methods")]
    for library in libraries:
        with getattr(library, name)(model, "3") as extractor:
            out = model(x.clone().requires_grad_())
            maps.append(extractor(0, MADE[made](out))[0])
    if name == "GradCAMpp":
        with ours.GradCAMpp(model, "3") as extractor:
            model(x)
            scale = iter(range(1, len(x) + 1))
            targets = [lambda one, k=next(scale): MADE[made](one[None])[0, 0] * (k if made == "scaled by picture" else 1) for _ in x]
            maps.append(extractor(targets=targets)[0])
    torch.testing.assert_close(*maps, rtol=1e-3, atol=1e-4)
    with ours.ScoreCAM(model, "3") as extractor:
        out = model(x)
        if made == "a difference":
            with pytest.raises(ValueError, match="got shape"):
                extractor(0, MADE[made](out))


@pytest.mark.parametrize("wrong", [dict(gamma=float("inf")), dict(gamma=float("nan")), dict(gamma="1"), dict(num_references=1.5)])
def test_finercam_refuses_what_is_no_number(wrong, tiny):
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
        ours.FinerCAM(tiny[0], "3", **wrong)


def test_refinecam_takes_scorecam_as_its_base(tiny):
    model, x = tiny
    with ours.RefineCAM(model, ["1", "3"], base_method=ours.ScoreCAM) as extractor:
        model(x)
        assert torch.isfinite(extractor(3)[0]).all()


@pytest.mark.parametrize("name", ["GradCAM", "FinerCAM", "RefineCAM"])
def test_a_warning_names_the_scripts_line(name, tiny):
    """However the extractor is asked, and with another one inside."""
    model, x = tiny
    with getattr(ours, name)(model, ["1", "3"] if name == "RefineCAM" else "3") as extractor:
        scores = 2 * model(x).detach()
        warned_line(lambda: extractor(3, scores), "a score of your own making")
        warned_line(lambda: extractor.compute_cams(3, scores), "a score of your own making")
