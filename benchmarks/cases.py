"""The cases: ResNet-50 on pictures of 224 × 224, random weights, and other networks. Later work adds rows here."""

from functools import partial
from importlib.util import find_spec

from benchmarks.harness import Case
from benchmarks.metrics import METRICS
from benchmarks.network import forward, model_and_input
from benchmarks.networks import NETWORK_CASES
from benchmarks.perturbation import PERTURBATION


def method(name, batch, **how):
    import gradcam_nb

    model, x = model_and_input(batch)
    return partial(getattr(gradcam_nb, name)(model, model.layer4[-1]), x, 5, **how)


def ten_classes():
    from gradcam_nb import GradCAM

    model, x = model_and_input(1)
    return partial(GradCAM(model, model.layer4[-1]).many, x, list(range(10)))


EIGHT = ["GradCAM", "HiResCAM", "GradCAMElementWise", "GradCAMPlusPlus", "XGradCAM", "LayerCAM", "EigenCAM", "EigenGradCAM"]
ONE_GRADIENT = ["HiResCAM", "GradCAMElementWise", "GradCAMPlusPlus", "XGradCAM", "LayerCAM", "EigenGradCAM"]


def eight_methods(batch):
    from gradcam_nb import compare

    model, x = model_and_input(batch)
    return partial(compare, model, x, EIGHT, 5, target_layers=model.layer4[-1])


def pytorch_grad_cam(batch):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, x = model_and_input(batch)
    cam = GradCAM(model=model, target_layers=[model.layer4[-1]])
    return partial(cam, x, [ClassifierOutputTarget(5)] * batch)


def _rows(group, batch, bound, **options):
    """GradCAM beside the forward pass, and beside the other library's where it is installed."""
    rows = [
        Case(group, "forward", partial(forward, batch), **options),
        Case(group, "GradCAM", partial(method, "GradCAM", batch), bound, **options),
    ]
    if find_spec("pytorch_grad_cam"):
        rows.append(Case(group, "PyPI grad-cam: GradCAM", partial(pytorch_grad_cam, batch), **options))
    return rows


CASES = [
    *_rows("time, batch 1", 1, 1.15),
    *_rows("time, batch 8", 8, 1.15),
    *_rows("peak memory, batch 32", 32, 1.15, memory=True),
    Case("methods, batch 8", "forward", partial(forward, 8)),
    *(Case("methods, batch 8", name, partial(method, name, 8), 1.2) for name in [*ONE_GRADIENT, "EigenCAM"]),
    Case("methods, batch 8", "FullGrad", partial(method, "FullGrad", 8), 3.5),
    Case("methods, batch 8", "GradCAM, aug_smooth", partial(method, "GradCAM", 8, aug_smooth=True), 6.5),
    Case("methods, batch 8", "eight methods, compare", partial(eight_methods, 8), 1.5),
    Case("classes, batch 1", "forward", partial(forward, 1)),
    Case("classes, batch 1", "ten classes, GradCAM.many", ten_classes, 1.6),
    *NETWORK_CASES,
    *PERTURBATION,
    *METRICS,
]
