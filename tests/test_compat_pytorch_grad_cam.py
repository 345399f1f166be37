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

from gradcam_nb.compat import arrays, cam, methods, metrics
from gradcam_nb.compat.pytorch_grad_cam.install import ABSENT
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import TEST, scenes
from gradcam_nb.targets.classifier import ClassifierOutputTarget

real = pytest.importorskip("pytorch_grad_cam")
pytestmark = pytest.mark.filterwarnings("ignore")

# Two processes with two threads each on two cores would wait for one another.
ENV = dict(os.environ, OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore")

# Where the other library's map is another one; the page "how this differs" has the reason of each.
ANOTHER_MAP = {"GradCAMPlusPlus": 0.99, "ScoreCAM": 0.98, "FullGrad": 0.7}
EITHER_WAY = {"EigenCAM", "EigenGradCAM", "KPCA_CAM"}  # the sign of a component


@pytest.fixture(scope="module")
def case():
    batch = scenes(2, TEST + 2016)
    return load("scenes-cnn"), batch.images * 2 - 1, batch.labels.argmax(1).tolist()


def asked(classes, library=None):
    """Each library's own targets."""
    target = ClassifierOutputTarget if library is methods else real.utils.model_targets.ClassifierOutputTarget
    return [target(c) for c in classes]


def alike(one, other):
    return [np.corrcoef(np.ravel(a), np.ravel(b))[0, 1] for a, b in zip(one, other)]


def drawn(library, name, case, layers=("layer4",), how={}, flip=False, **options):
    """A library's maps, on a copy of the model that it may do with as it likes."""
    model, x, classes = copy.deepcopy(case[0]), case[1], case[2]
    if "base_method" in options:
        options["base_method"] = getattr(library, options["base_method"])
    method = getattr(library, name)
    if flip:
        method = type(name, (method,), {"get_cam_image": lambda self, *asked: -getattr(library, name).get_cam_image(self, *asked)})
    return np.asarray(
        method(model, [model.get_submodule(layer) for layer in layers], **options)(
            x, None if name == "FinerCAM" else asked(classes, library), **how
        )
    )


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


@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_their_map(name, case):
    how = dict(num_scales=3) if name == "SESS" else {}
    least = ANOTHER_MAP.get(name, 0.999)
    found = [
        alike(drawn(methods, name, case, **how), drawn(real, name, case, flip=flip, **how))
        for flip in ((False, True) if name in EITHER_WAY else (False,))
    ]
    assert all(max(ways) >= least for ways in zip(*found)), found


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
    found = alike(drawn(methods, name, case, layers, how, **dict(options)), drawn(real, name, case, layers, how, **dict(options)))
    assert min(found) >= 0.999, found


@pytest.mark.parametrize("name", ["GradCAM", "LayerCAM", "XGradCAM"])
def test_several_layers(name, case):
    assert min(alike(drawn(methods, name, case, ("layer3", "layer4")), drawn(real, name, case, ("layer3", "layer4")))) >= 0.999


@pytest.mark.parametrize("name", ["GradCAM", "HiResCAM", "XGradCAM", "LayerCAM", "FinerCAM", "ShapleyCAM"])
def test_real_weights(name, data):
    import demo_models

    from gradcam_nb import preprocess_for

    model = demo_models.squeezenet1_1_imagenet(data / "models")
    x = torch.cat([preprocess_for(model)(data / "images" / photo) for photo in ("misc/both.png", "coral/cat_720p.jpg")])
    photos = (model, x, [243, 281])
    assert min(alike(drawn(methods, name, photos, ("features.12",)), drawn(real, name, photos, ("features.12",)))) >= 0.999


def users_own(base):
    class Own(base):
        """As the other library's documentation shows it."""

        def __init__(self, model, target_layers, reshape_transform=None):
            super().__init__(model, target_layers, reshape_transform)

        def get_cam_weights(self, input_tensor, target_layer, target_category, activations, grads):
            assert isinstance(grads, np.ndarray) and activations.shape == grads.shape
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
    maps = []
    for library, net in ((methods, model), (real, copy.deepcopy(model))):
        root = {"BaseCAM": cam.BaseCAM if library is methods else importlib.import_module("pytorch_grad_cam.base_cam").BaseCAM}.get(
            base
        ) or library.GradCAM
        maps.append(own(root)(net, [net.layer4])(x, asked(classes), **how))
    assert min(alike(*maps)) >= 0.999


def test_older_spellings(case):
    model, x, classes = case
    now = methods.GradCAM(model, [model.layer4])(x, asked(classes))
    np.testing.assert_array_equal(
        methods.GradCAM(model=model, target_layer=model.layer4, use_cuda=False)(input_tensor=x, target_category=classes), now
    )
    np.testing.assert_array_equal(methods.GradCAM(model, [model.layer4], False)(x, classes), now)
    one = methods.GradCAM(model, [model.layer4])(x, target_category=classes[0])
    np.testing.assert_array_equal(one[:1], now[:1])


def test_the_model_is_left_as_it_was(case):
    model = copy.deepcopy(case[0]).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with methods.GradCAM(model, [model.layer4]) as method:
        method(case[1], asked(case[2]))
    users_own(cam.BaseCAM)(model, [model.layer4])(case[1], asked(case[2]))
    assert model.training and all(p.grad is None for p in model.parameters()) and not any(m._forward_hooks for m in model.modules())
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


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
    arcc = importlib.import_module("pytorch_grad_cam.metrics.arcc")
    model, x, classes = case
    maps = drawn(methods, "GradCAM", case)
    found = []
    for library, of in ((metrics, methods), (arcc, real)):
        net = copy.deepcopy(model)
        method = of.GradCAM(net, [net.layer4])
        found.append(
            (
                library.Complexity()(maps),
                library.Coherency()(x, maps, asked(classes), net, method),
                library.batch_pearson_coherency(maps, maps[::-1]),
                library.ARCC(method, [40])(x, maps, asked(classes), net),
            )
        )
    for ours, theirs, least in zip(*found, (1e-5, 1e-3, 1e-4, 0.1)):
        np.testing.assert_allclose(ours, theirs, atol=least)


def test_functions(case):
    values = np.random.default_rng(0).normal(size=(2, 6, 7, 7)).astype(np.float32)
    image, svd, reshape = (
        importlib.import_module(f"pytorch_grad_cam.utils.{name}") for name in ("image", "svd_on_activations", "reshape_transforms")
    )
    np.testing.assert_allclose(arrays.scale_cam_image(values[:, 0], (21, 14)), image.scale_cam_image(values[:, 0], (21, 14)), atol=1e-4)
    np.testing.assert_allclose(
        arrays.scale_accross_batch_and_channels(values, (14, 21)), image.scale_accross_batch_and_channels(values, (14, 21)), atol=1e-4
    )
    for name in ("get_2d_projection", "get_2d_projection_kernel", "get_2d_projection_with_sign_correction"):
        assert all(abs(r) >= 0.999 for r in alike(getattr(arrays, name)(values), getattr(svd, name)(values.copy()))), name
    tokens = torch.randn(2, 49, 5)
    torch.testing.assert_close(arrays.swinT_reshape_transform(tokens), reshape.swinT_reshape_transform(tokens))
    model, x, classes = case
    guided = real.GuidedBackpropReLUModel(copy.deepcopy(model), "cpu")(x[:1].clone(), classes[0])
    np.testing.assert_allclose(arrays.GuidedBackpropReLUModel(model, device="cpu")(x[:1], target_category=classes[0]), guided, atol=1e-5)
    assert arrays.find_layer_types_recursive(model, [torch.nn.Conv2d]) == importlib.import_module(
        "pytorch_grad_cam.utils.find_layers"
    ).find_layer_types_recursive(model, [torch.nn.Conv2d])
    labels = {i: f"class {i}" for i in range(7)}
    assert arrays.create_labels_legend(np.abs(values[0, :, 0]), labels) == image.create_labels_legend(np.abs(values[0, :, 0]), labels)


SURFACE = """
import importlib, inspect, json, pkgutil, sys, warnings
warnings.simplefilter("ignore")
import pytorch_grad_cam
if sys.argv[1] == "theirs":
    names = ["", *(m.name.partition(".")[2] for m in pkgutil.walk_packages(pytorch_grad_cam.__path__, "pytorch_grad_cam."))]
else:
    names = json.loads(sys.argv[2])
def arguments(value):
    try: return [(p.name, repr(p.default) if isinstance(p.default, (int, float, str, bool, type(None))) else "-") for p in inspect.signature(value).parameters.values()]
    except ValueError: return None
found = {}
for name in names:
    try: module = importlib.import_module(f"pytorch_grad_cam.{name}".strip("."))
    except ImportError as error:
        found[name] = str(error)
        continue
    public = [key for key in dir(module) if not key.startswith("_")]
    here = lambda value: (getattr(value, "__module__", None) or "").startswith(("pytorch_grad_cam", "gradcam_nb")) or isinstance(value, (list, tuple)) and value
    found[name] = {key: arguments(value) if callable(value) else None for key in public if not inspect.ismodule(value := getattr(module, key)) and here(value)}
print(json.dumps(found))
"""


def surface(whose, names=()):
    run = [sys.executable, "-W", "ignore"]
    if whose == "ours":
        code = f"from gradcam_nb.compat import install; install(force=True)\n{SURFACE}"
    else:
        code = SURFACE
    return json.loads(
        subprocess.run(
            [*run, "-c", code, whose, json.dumps(list(names))], capture_output=True, text=True, check=True, env=ENV
        ).stdout.splitlines()[-1]
    )


def test_public_names():
    """Each public name of the installed package is there with its arguments and defaults, or its absence has a reason; never both."""
    theirs = surface("theirs")
    ours = surface("ours", theirs)
    assert len(theirs) > 30
    seen = set()
    for module, names in theirs.items():
        if isinstance(ours[module], str):
            assert module in ABSENT and ABSENT[module] in ours[module], module
            seen.add(module)
            continue
        for name, arguments in names.items():
            full = f"{module}.{name}".strip(".")
            # `sobel_cam` and the like: a module and a function in it.
            if full in ABSENT:
                assert name not in ours[module], full
                seen.add(full)
                continue
            assert name in ours[module], f"{full} is not there, and nothing says why"
            if arguments and ours[module][name]:
                mine = dict(ours[module][name])
                for argument, default in arguments:
                    assert argument in mine or "older" in mine or "options" in mine, f"{full}: {argument}"
                    if (full.rpartition(".")[2], argument) not in FOUND and default not in ("-", repr(None)):
                        assert mine.get(argument) == default, f"{full}: {argument}={mine.get(argument)}, theirs {default}"
    assert seen == set(ABSENT)


# Numbers there, found here; the same for the networks which the numbers were made for.
FOUND = {(name, side) for name in ("vit_reshape_transform", "swinT_reshape_transform") for side in ("height", "width")}


README = """
import sys
import numpy as np
import torch
import cv2
from pytorch_grad_cam import (GradCAM, HiResCAM, GradCAMPlusPlus, XGradCAM, LayerCAM, EigenCAM, FullGrad, ShapleyCAM, FinerCAM, SegEigenCAM, RefineCAM, SESS,
                              ScoreCAM, AblationCAM, GuidedBackpropReLUModel)
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
with SESS(model=model, target_layers=target_layers, base_method=GradCAM, num_scales=2, step_size=128, pre_filter_ratio=0.5, batch_size=32) as cam:
    kept["SESS"] = cam(input_tensor=input_tensor, targets=targets)[0]

# Smoothing.
with GradCAM(model=model, target_layers=target_layers) as cam:
    kept["aug_smooth"] = cam(input_tensor=input_tensor, targets=targets, aug_smooth=True)[0]
    kept["eigen_smooth"] = cam(input_tensor=input_tensor, targets=targets, eigen_smooth=True)[0]
    grayscale_cams = cam(input_tensor=input_tensor, targets=targets)

    # Metrics.
    metric_targets = [ClassifierOutputSoftmaxTarget(category)]
    scores, batch_visualizations = CamMultImageConfidenceChange()(input_tensor, 1 - grayscale_cams, metric_targets, model, return_visualization=True)
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
        (r,) = alike([ours[name]], [theirs[name]])
        # A component turned over shows all but what it showed.
        assert r >= ANOTHER_MAP.get(name, 0.999) or name in {*EITHER_WAY, "eigen_smooth"} and r < 0, (name, r)
    np.testing.assert_allclose(ours["numbers"], theirs["numbers"], atol=0.1)


def test_it_refuses_to_hide_the_real_one(tmp_path):
    (script := tmp_path / "script.py").write_text("import pytorch_grad_cam\n")
    run = lambda *more: subprocess.run([sys.executable, "-m", "gradcam_nb.compat", *more, script], capture_output=True, text=True, env=ENV)
    refused = run()
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "--force" in refused.stderr
    assert run("--force").returncode == 0


def test_arguments_reach_the_script(tmp_path):
    (tmp_path / "beside.py").write_text("word = 'beside'\n")
    (script := tmp_path / "script.py").write_text("import sys, beside\nprint(__name__, sys.argv[1:], beside.word)\nsys.exit(7)\n")
    ran = subprocess.run(
        [sys.executable, "-m", "gradcam_nb.compat", "--force", script, "--force", "x"], capture_output=True, text=True, env=ENV
    )
    assert (ran.returncode, ran.stdout) == (7, "__main__ ['--force', 'x'] beside\n")


def test_every_map_says_what_the_page_says():
    """Each method whose map is another one stands on the page of differences."""
    page = (Path(__file__).resolve().parent.parent / "nbs/guides/differs.ipynb").read_text()
    words = {"GradCAMPlusPlus": "Grad-CAM++", "KPCA_CAM": "KPCA-CAM"}
    assert all(words.get(name, name) in page for name in [*ANOTHER_MAP, *EITHER_WAY])
