"""Scripts written for pytorch_grad_cam: the same names, arguments and defaults, and the same pictures as the PyPI package gives."""

import copy
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles_libraries import correlation, correlations, left_as_it_was, with_photos

from gradcam_nb.compat.pytorch_grad_cam import arcc, arrays, methods, metrics
from gradcam_nb.compat.pytorch_grad_cam.base import BaseCAM
from gradcam_nb.compat.pytorch_grad_cam.names import ABSENT, PLACES
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import TEST, scenes
from gradcam_nb.targets.classifier import ClassifierOutputTarget

real = pytest.importorskip("pytorch_grad_cam")
pytestmark = pytest.mark.filterwarnings("ignore")

# Two processes with two threads each on two cores would wait for one another.
ENV = dict(os.environ, PYTHONWARNINGS="ignore")


@pytest.fixture(scope="module")
def case():
    batch = scenes(2, TEST + 2016)
    return load("scenes-cnn"), batch.images * 2 - 1, batch.labels.argmax(1).tolist()


def asked(classes, library=None):
    """Each library's own targets."""
    target = real.utils.model_targets.ClassifierOutputTarget if library is real else ClassifierOutputTarget
    return [target(c) for c in classes]


def named(library, name):
    """A method of the other library, or of ours."""
    if library is real:
        return getattr(real, name)
    return getattr(importlib.import_module(PLACES[name]), name)


def drawn(library, name, case, layers=("layer4",), how=None, **options):
    """A library's maps, on a copy of the model that it may do with as it likes."""
    model, x, classes = copy.deepcopy(case[0]), case[1], case[2]
    if "base_method" in options:
        options["base_method"] = named(library, options["base_method"])
    method = named(library, name)
    cam = method(model, [model.get_submodule(layer) for layer in layers], **options)
    targets = None if name == "FinerCAM" else asked(classes, library)
    return np.asarray(cam(x, targets, **(how or {})))


def agreement(name, case, *where, **options):
    """The lowest correlation of our maps and theirs."""
    ours, theirs = (drawn(library, name, case, *where, **dict(options)) for library in (methods, real))
    return min(correlations(ours, theirs))


METHODS = [
    "GradCAM",
    "HiResCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "XGradCAM",
    "LayerCAM",
    "EigenCAM",
    "EigenGradCAM",
    "SegEigenCAM",
    "KPCA_CAM",
    "FEM",
    "ShapleyCAM",
    "FullGrad",
    "FinerCAM",
    "AblationCAM",
    "ScoreCAM",
    "SESS",
]


@pytest.mark.parametrize("layers", [("layer4",), ("layer3", "layer4")], ids=len)
@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_their_numbers(name, layers, case):
    how = dict(num_scales=3) if name == "SESS" else {}
    ours, theirs = (drawn(library, name, case, layers, **how) for library in (methods, real))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3 if name == "ShapleyCAM" else 2e-4)


@pytest.mark.parametrize(
    "name, how, options",
    [
        ("GradCAM", dict(aug_smooth=True), {}),
        ("HiResCAM", dict(aug_smooth=True), {}),
        ("RefineCAM", {}, dict(base_method="GradCAM")),
        ("FinerCAM", dict(alpha=0.5, comparison_categories=[1, 3], target_idx=4), {}),
        ("FinerCAM", {}, dict(base_method="LayerCAM")),
        ("FEM", {}, dict(k=1)),
        ("AblationCAM", {}, dict(batch_size=8)),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value) or "-",
)
def test_options(name, how, options, case):
    layers = ("layer3", "layer4") if name == "RefineCAM" else ("layer4",)
    assert agreement(name, case, layers, how, **options) >= 0.999


@pytest.mark.parametrize("name", ["GradCAM", "HiResCAM", "XGradCAM", "LayerCAM", "FinerCAM", "ShapleyCAM"])
def test_real_weights(name, data):
    assert agreement(name, with_photos("squeezenet1_1_imagenet", data), ("features.12",)) >= 0.999


def users_own(base):
    class Own(base):
        """As the other library's documentation shows it."""

        def __init__(self, model, target_layers, reshape_transform=None):
            super().__init__(model, target_layers, reshape_transform)

        def get_cam_weights(self, input_tensor, target_layer, target_category, activations, grads):
            assert isinstance(grads, np.ndarray)
            assert activations.shape == grads.shape
            return np.maximum(grads, 0).mean(axis=(2, 3))

    return Own


def users_image(base):
    class Own(base):
        def get_cam_image(self, input_tensor, target_layer, targets, activations, grads, eigen_smooth):
            return np.maximum(grads * activations, 0).sum(axis=1)

    return Own


@pytest.mark.parametrize("how", [{}, dict(aug_smooth=True)], ids=["plain", "aug_smooth"])
@pytest.mark.parametrize("own", [users_own, users_image])
@pytest.mark.parametrize("base", ["BaseCAM", "GradCAM"])
def test_a_users_own_class(own, base, how, case):
    model, x, classes = case
    bases = {
        "BaseCAM": (BaseCAM, importlib.import_module("pytorch_grad_cam.base_cam").BaseCAM),
        "GradCAM": (methods.GradCAM, real.GradCAM),
    }
    maps = []
    for root, net in zip(bases[base], (model, copy.deepcopy(model))):
        maps.append(own(root)(net, [net.layer4])(x, asked(classes), **how))
    assert min(correlations(*maps)) >= 0.999


def test_older_spellings(case):
    model, x, classes = case
    now = methods.GradCAM(model, [model.layer4])(x, asked(classes))
    older = methods.GradCAM(model=model, target_layer=model.layer4, use_cuda=False)
    np.testing.assert_array_equal(older(input_tensor=x, target_category=classes), now)
    np.testing.assert_array_equal(methods.GradCAM(model, [model.layer4], False)(x, classes), now)
    one = methods.GradCAM(model, [model.layer4])(x, target_category=classes[0])
    np.testing.assert_array_equal(one[:1], now[:1])


def test_the_model_is_left_as_it_was(case):
    model = copy.deepcopy(case[0]).train()
    with left_as_it_was(model), methods.GradCAM(model, [model.layer4]) as method:
        method(case[1], asked(case[2]))
    with left_as_it_was(model):
        users_own(BaseCAM)(model, [model.layer4])(case[1], asked(case[2]))


def measured(library, name, case, maps, **options):
    cls = getattr(library, name)
    return np.asarray(cls(**options)(case[1], maps, asked(case[2]), copy.deepcopy(case[0])))


@pytest.mark.parametrize(
    "name, module, options",
    [
        ("CamMultImageConfidenceChange", "cam_mult_image", {}),
        ("DropInConfidence", "cam_mult_image", {}),
        ("IncreaseInConfidence", "cam_mult_image", {}),
        ("ROADMostRelevantFirst", "road", dict(percentile=75)),
        ("ROADLeastRelevantFirst", "road", dict(percentile=25)),
        ("ROADMostRelevantFirstAverage", "road", dict(percentiles=[40, 80])),
        ("ROADLeastRelevantFirstAverage", "road", dict(percentiles=[40, 80])),
        ("ROADCombined", "road", dict(percentiles=[40, 80])),
    ],
    ids=lambda value: value if isinstance(value, str) else "-",
)
def test_metrics(name, module, options, case, monkeypatch):
    # ROAD's noise is drawn anew there at each call: without it both are to give one number.
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    monkeypatch.setattr(torch, "randn", lambda shape, **how: torch.zeros(shape))
    maps = np.random.default_rng(0).random((2, 128, 128), dtype=np.float32) if module == "road" else drawn(methods, "GradCAM", case)
    ours, theirs = (
        measured(library, name, case, maps, **options)
        for library in (metrics, importlib.import_module(f"pytorch_grad_cam.metrics.{module}"))
    )
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_arcc(case):
    theirs = importlib.import_module("pytorch_grad_cam.metrics.arcc")
    model, x, classes = case
    maps, targets = drawn(methods, "GradCAM", case), asked(classes)

    def metrics_of(library, method, net):
        cam = method(net, [net.layer4])
        return {
            "complexity": library.Complexity()(maps),
            "coherency": library.Coherency()(x, maps, targets, net, cam),
            "correlation": library.batch_pearson_coherency(maps, maps[::-1]),
            "ARCC": library.ARCC(cam, [40])(x, maps, targets, net),
        }

    here, there = metrics_of(arcc, methods.GradCAM, model), metrics_of(theirs, real.GradCAM, copy.deepcopy(model))
    for name, apart in {"complexity": 1e-5, "coherency": 1e-3, "correlation": 1e-4, "ARCC": 0.1}.items():
        np.testing.assert_allclose(here[name], there[name], atol=apart, err_msg=name)


@pytest.fixture(scope="module")
def values():
    return np.random.default_rng(0).normal(size=(2, 6, 7, 7)).astype(np.float32)


def their(module):
    return importlib.import_module(f"pytorch_grad_cam.utils.{module}")


def test_maps_are_scaled_as_theirs(values):
    image = their("image")
    maps = values[:, 0]
    np.testing.assert_allclose(arrays.scale_cam_image(maps, (21, 14)), image.scale_cam_image(maps, (21, 14)), atol=1e-4)
    here, there = (library.scale_accross_batch_and_channels(values, (14, 21)) for library in (arrays, image))
    np.testing.assert_allclose(here, there, atol=1e-4)


@pytest.mark.parametrize("name", ["get_2d_projection", "get_2d_projection_kernel", "get_2d_projection_with_sign_correction"])
def test_projections_are_theirs(name, values):
    here, there = getattr(arrays, name)(values), getattr(their("svd_on_activations"), name)(values.copy())
    assert min(map(abs, correlations(here, there))) >= 0.999


def test_tokens_are_laid_out_as_theirs():
    tokens = torch.randn(2, 49, 5)
    there = their("reshape_transforms").swinT_reshape_transform(tokens)
    torch.testing.assert_close(arrays.swinT_reshape_transform(tokens), there)


def test_guided_backpropagation_is_theirs(case):
    model, x, classes = case
    there = real.GuidedBackpropReLUModel(copy.deepcopy(model), "cpu")(x[:1].clone(), classes[0])
    here = arrays.GuidedBackpropReLUModel(model, device="cpu")(x[:1], target_category=classes[0])
    np.testing.assert_allclose(here, there, atol=1e-5)


def test_layers_are_found_as_theirs(case):
    types = [torch.nn.Conv2d]
    there = their("find_layers").find_layer_types_recursive(case[0], types)
    assert there
    assert arrays.find_layer_types_recursive(case[0], types) == there


def test_a_legend_is_theirs(values):
    scores, labels = np.abs(values[0, :, 0]), {i: f"class {i}" for i in range(7)}
    assert arrays.create_labels_legend(scores, labels) == their("image").create_labels_legend(scores, labels)


SURFACE = """
import importlib, inspect, json, pkgutil, sys, warnings
warnings.simplefilter("ignore")
import pytorch_grad_cam
if sys.argv[1] == "theirs":
    names = ["", *(m.name.partition(".")[2] for m in pkgutil.walk_packages(pytorch_grad_cam.__path__, "pytorch_grad_cam."))]
else:
    names = json.loads(sys.argv[2])

PLAIN = (int, float, str, bool, type(None))
def arguments(value):
    try:
        parameters = inspect.signature(value).parameters.values()
    except ValueError:
        return None
    return [(p.name, repr(p.default) if isinstance(p.default, PLAIN) else "-") for p in parameters]

def of_the_library(value):
    if inspect.ismodule(value):
        return False
    if isinstance(value, (list, tuple)):
        return bool(value)
    return (getattr(value, "__module__", None) or "").startswith(("pytorch_grad_cam", "gradcam_nb"))

found = {}
for name in names:
    try:
        module = importlib.import_module(f"pytorch_grad_cam.{name}".strip("."))
    except ImportError as error:
        found[name] = str(error)
        continue
    public = {key: getattr(module, key) for key in dir(module) if not key.startswith("_")}
    found[name] = {key: arguments(value) if callable(value) else None for key, value in public.items() if of_the_library(value)}
print(json.dumps(found))
"""


def surface(whose, names=()):
    """Module -> its public names -> their arguments, as a process sees them that imports `pytorch_grad_cam`."""
    code = f"from gradcam_nb.compat import install; install(force=True)\n{SURFACE}" if whose == "ours" else SURFACE
    run = [sys.executable, "-W", "ignore", "-c", code, whose, json.dumps(list(names))]
    done = subprocess.run(run, capture_output=True, text=True, check=True, env=ENV)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def surfaces():
    theirs = surface("theirs")
    assert len(theirs) > 30
    return theirs, surface("ours", theirs)


# Numbers there, found here; the same for the networks which the numbers were made for.
FOUND = {(name, side) for name in ("vit_reshape_transform", "swinT_reshape_transform") for side in ("height", "width")}


def names_of_both(surfaces):
    """Full name -> arguments of theirs, arguments of ours: of modules that are here, without what is absent on purpose."""
    theirs, ours = surfaces
    for module in theirs:
        if isinstance(ours[module], str):
            continue
        for name, arguments in theirs[module].items():
            full = f"{module}.{name}".strip(".")
            if full not in ABSENT:
                yield full, arguments, ours[module].get(name, "missing")


def test_each_public_name_is_there_or_has_a_reason(surfaces):
    missing = [full for full, _, mine in names_of_both(surfaces) if mine == "missing"]
    assert missing == []


def test_each_reason_is_needed_and_said(surfaces):
    """What is absent is a module or a name of theirs, is really not here, and an import of a module says why."""
    theirs, ours = surfaces
    needed = set()
    for module, names in theirs.items():
        if isinstance(ours[module], str):
            assert module in ABSENT
            assert ABSENT[module] in ours[module]
            needed.add(module)
            continue
        absent = {name for name in names if f"{module}.{name}".strip(".") in ABSENT}
        assert absent & set(ours[module]) == set(), module
        needed |= {f"{module}.{name}".strip(".") for name in absent}
    assert needed == set(ABSENT)


def test_arguments_have_their_names_and_defaults(surfaces):
    compared = 0
    for full, arguments, mine in names_of_both(surfaces):
        if not arguments or not mine:
            continue
        mine = dict(mine)
        any_name = "older" in mine or "options" in mine
        for argument, default in arguments:
            assert any_name or argument in mine, f"{full}: {argument}"
            found_here = (full.rpartition(".")[2], argument) in FOUND
            if not found_here and default not in ("-", repr(None)):
                assert mine.get(argument) == default, f"{full}: {argument}"
                compared += 1
    assert compared > 30


README = """
import sys
import numpy as np
import torch
import cv2
from pytorch_grad_cam import (GradCAM, HiResCAM, GradCAMPlusPlus, XGradCAM, LayerCAM, EigenCAM, FullGrad, ShapleyCAM, FinerCAM,
                              SegEigenCAM, RefineCAM, SESS, ScoreCAM, AblationCAM, GuidedBackpropReLUModel)
from pytorch_grad_cam.utils.image import show_cam_on_image, deprocess_image, preprocess_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget, ClassifierOutputSoftmaxTarget
from pytorch_grad_cam.metrics.cam_mult_image import CamMultImageConfidenceChange
from pytorch_grad_cam.metrics.road import ROADMostRelevantFirst, ROADLeastRelevantFirst
from pytorch_grad_cam.metrics.road import ROADMostRelevantFirstAverage, ROADLeastRelevantFirstAverage, ROADCombined
from pytorch_grad_cam.metrics.arcc import ARCC
from pytorch_grad_cam.ablation_layer import AblationLayerVit
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import TEST, scenes

model, batch = load("scenes-cnn"), scenes(1, TEST + 2016)
rgb_img = np.float32(batch.images[0].permute(1, 2, 0))
input_tensor = preprocess_image(rgb_img)
category = int(batch.labels.argmax(1))
kept = {}

# Any of the methods, over any layers, with any target.
target_layers = [model.layer4]
targets = [ClassifierOutputTarget(category)]
for method in (GradCAM, HiResCAM, GradCAMPlusPlus, XGradCAM, LayerCAM, EigenCAM, FullGrad, ShapleyCAM, SegEigenCAM, ScoreCAM, AblationCAM):
    with method(model=model, target_layers=target_layers) as cam:
        cam.batch_size = 32
        grayscale_cam = cam(input_tensor=input_tensor, targets=targets)[0, :]
        visualization = show_cam_on_image(rgb_img, grayscale_cam, use_rgb=True)
        kept[method.__name__] = grayscale_cam
assert cam.outputs.shape == (1, 12) or method is AblationCAM
assert visualization.shape == (128, 128, 3) and visualization.dtype == np.uint8
kept["FinerCAM"] = FinerCAM(model=model, target_layers=target_layers, base_method=GradCAM)(input_tensor=input_tensor)[0]
kept["RefineCAM"] = RefineCAM(model=model, target_layers=[model.layer3, model.layer4], base_method=GradCAM)(input_tensor, targets)[0]
windows = dict(num_scales=2, step_size=128, pre_filter_ratio=0.5, batch_size=32)
with SESS(model=model, target_layers=target_layers, base_method=GradCAM, **windows) as cam:
    kept["SESS"] = cam(input_tensor=input_tensor, targets=targets)[0]

# Smoothing.
with GradCAM(model=model, target_layers=target_layers) as cam:
    kept["aug_smooth"] = cam(input_tensor=input_tensor, targets=targets, aug_smooth=True)[0]
    kept["eigen_smooth"] = cam(input_tensor=input_tensor, targets=targets, eigen_smooth=True)[0]
    grayscale_cams = cam(input_tensor=input_tensor, targets=targets)

    # Metrics.
    metric_targets = [ClassifierOutputSoftmaxTarget(category)]
    cam_metric = CamMultImageConfidenceChange()
    inverse_cams = 1 - grayscale_cams
    scores, batch_visualizations = cam_metric(input_tensor, inverse_cams, metric_targets, model, return_visualization=True)
    kept["changed"] = deprocess_image(batch_visualizations[0, :].numpy())
    road, removed = ROADMostRelevantFirst(percentile=75)(input_tensor, grayscale_cams, metric_targets, model, return_visualization=True)
    assert removed.shape == input_tensor.shape
    combined = ROADCombined(percentiles=[40, 80])(input_tensor, grayscale_cams, targets, model)
    arcc = ARCC(base_method=cam, road_percentiles=[80])(input_tensor, grayscale_cams, targets, model)
    numbers = [scores, combined, arcc]

# Guided backpropagation.
gb = GuidedBackpropReLUModel(model=model, device="cpu")(input_tensor, target_category=None)
cam_mask = cv2.merge([grayscale_cams[0]] * 3)
kept["cam_gb"], kept["gb"] = deprocess_image(cam_mask * gb), deprocess_image(gb)
np.savez(sys.argv[1], numbers=np.float32([float(np.ravel(n)[0]) for n in numbers]), **kept)
"""


def test_the_readmes_script(tmp_path):
    """The usage examples of their README as one file, in our own words: run as it is, and by our launcher."""
    (script := tmp_path / "examples.py").write_text(README)
    for launcher, out in (([], "theirs"), (["-m", "gradcam_nb.compat", "--force"], "ours")):
        subprocess.run([sys.executable, *launcher, script, tmp_path / f"{out}.npz"], check=True, env=ENV, capture_output=True, text=True)
    ours, theirs = (np.load(tmp_path / f"{out}.npz") for out in ("ours", "theirs"))
    assert set(ours) == set(theirs)
    for name in set(ours) - {"numbers"}:
        assert correlation(ours[name], theirs[name]) >= 0.999, name
    np.testing.assert_allclose(ours["numbers"], theirs["numbers"], atol=0.1)


def launched(*argv):
    return subprocess.run([sys.executable, "-m", "gradcam_nb.compat", *argv], capture_output=True, text=True, env=ENV)


def test_it_refuses_to_hide_the_real_one(tmp_path):
    (script := tmp_path / "script.py").write_text("import pytorch_grad_cam\n")
    refused = launched(script)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "--force" in refused.stderr
    assert launched("--force", script).returncode == 0


def test_arguments_reach_the_script(tmp_path):
    (tmp_path / "beside.py").write_text("word = 'beside'\n")
    (script := tmp_path / "script.py").write_text("import sys, beside\nprint(__name__, sys.argv[1:], beside.word)\nsys.exit(7)\n")
    ran = launched("--force", script, "--force", "x")
    assert ran.stdout == "__main__ ['--force', 'x'] beside\n"
    assert ran.returncode == 7


@pytest.mark.parametrize(
    "argv, status, says", [(["--help"], 0, "usage:"), ([], 2, "usage:"), (["--force", "none.py"], 2, "no script 'none.py'")]
)
def test_what_is_no_script(argv, status, says):
    ran = launched(*argv)
    assert ran.returncode == status
    assert says in (ran.stderr if status else ran.stdout)


def test_every_map_says_what_the_page_says():
    """Each method whose native map is another one stands on the page of differences."""
    page = (Path(__file__).resolve().parent.parent / "nbs/guides/differs.ipynb").read_text()
    names = ["Grad-CAM++", "ScoreCAM", "FullGrad", "EigenCAM", "EigenGradCAM", "KPCA-CAM"]
    assert [name for name in names if name not in page] == []
