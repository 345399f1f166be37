"""What a map costs on other networks: told the layer, and at the first call with nothing told. Random weights, 224 × 224."""

from functools import lru_cache, partial

import torch

from benchmarks.harness import Case
from benchmarks.network import DEVICE

NETWORKS = {
    "MobileNetV2": "mobilenetv2_100",
    "ConvNeXt-tiny": "convnext_tiny",
    "ViT-small": "vit_small_patch16_224",
    "Swin-tiny": "swin_tiny_patch4_window7_224",
}


@lru_cache(1)  # one model for all rows of a group, as a program has; copies of its weights push each other out of the caches
def network_and_input(name, batch):
    import timm

    torch.manual_seed(0)
    return timm.create_model(NETWORKS[name]).eval().to(DEVICE), torch.randn(batch, 3, 224, 224, device=DEVICE)


def forward(name, batch):
    model, x = network_and_input(name, batch)

    def call():
        with torch.inference_mode():
            return model(x)

    return call


def told(method, name, batch):
    """The layer is known from a call before."""
    import gradcam_nb

    model, x = network_and_input(name, batch)
    cam = getattr(gradcam_nb, method)(model)
    cam(x, 5)
    return partial(cam, x, 5)


def nothing_told(name, batch):
    """Each call is a first one: the layer is found in the same run."""
    from gradcam_nb import GradCAM

    model, x = network_and_input(name, batch)
    return lambda: GradCAM(model)(x, 5)


def _rows(name, batch):
    group, rounds = f"{name}, batch {batch}", 200 if batch == 1 else 15
    return [
        Case(group, "forward", partial(forward, name, batch), rounds=rounds),
        Case(group, "GradCAM", partial(told, "GradCAM", name, batch), 1.15),
        Case(group, "LayerCAM", partial(told, "LayerCAM", name, batch), 1.15),
        Case(group, "GradCAM, nothing told", partial(nothing_told, name, batch), 1.3),
    ]


NETWORK_CASES = [case for name in NETWORKS for batch in (1, 8) for case in _rows(name, batch)]
