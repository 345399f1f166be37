"""The suggested layer, family by family: random weights, nothing told."""

import pytest
import timm
import torch
import torchvision
from tiny_models import draw_zeroed_weights

from gradcam_nb import GradCAM
from gradcam_nb.engine.live import suggest_layer

# model -> the layer that the field uses, and its places on a 224 × 224 picture
FAMILIES = {
    "torchvision:resnet18": ("layer4", (7, 7)),
    "torchvision:resnext50_32x4d": ("layer4", (7, 7)),
    "torchvision:vgg11_bn": ("features", (7, 7)),
    "torchvision:densenet121": ("features", (7, 7)),
    "torchvision:mobilenet_v2": ("features", (7, 7)),
    "torchvision:mobilenet_v3_small": ("features", (7, 7)),
    "torchvision:efficientnet_b0": ("features", (7, 7)),
    "torchvision:convnext_tiny": ("features", (7, 7)),
    "torchvision:vit_b_32": ("encoder.layers.encoder_layer_11.ln_1", (7, 7)),
    "torchvision:swin_t": ("norm", (7, 7)),
    "resnet18": ("layer4", (7, 7)),
    "vgg11": ("features", (7, 7)),
    "densenet121": ("features", (7, 7)),
    "mobilenetv2_100": ("bn2", (7, 7)),
    "mobilenetv3_small_100": ("blocks", (7, 7)),
    "efficientnet_b0": ("bn2", (7, 7)),
    "convnext_atto": ("stages", (7, 7)),
    "vit_tiny_patch16_224": ("blocks.11.norm1", (14, 14)),
    "deit_tiny_patch16_224": ("blocks.11.norm1", (14, 14)),
    "deit_tiny_distilled_patch16_224": ("blocks.11.norm1", (14, 14)),
    "swin_tiny_patch4_window7_224": ("norm", (7, 7)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name):
    torch.manual_seed(0)
    library, _, rest = name.rpartition(":")
    model = torchvision.models.get_model(rest, weights=None) if library else timm.create_model(name)
    draw_zeroed_weights(model)
    x = torch.rand(1, 3, 224, 224)
    layer = suggest_layer(model, x)
    expected_name, expected_grid = FAMILIES[name]
    assert layer.name == expected_name
    assert layer.grid == expected_grid
    assert model.training, "it was left in evaluation mode"
    heat = GradCAM(model)(x, lambda output: output[3] - output[7])
    assert heat.shape == (1, 224, 224)
    assert heat.isfinite().all()
    assert 0 <= heat.min() <= heat.max() <= 1
