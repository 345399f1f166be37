"""Segmentation networks of torchvision and Hugging Face, explained in at most four lines, nothing told but the class.

Detectors: test_detectors.py. Video networks and Hugging Face's transformers: test_reshape.py. Vision and language: test_language.py.
"""

import pytest
import torch
from torchvision.models import segmentation

from gradcam_nb import HiResCAM, SemanticSegmentationTarget

x = torch.nn.functional.interpolate(torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(0)), size=(96, 128), mode="bilinear")


def checked(heat):
    assert heat.shape == (2, 96, 128)
    assert heat.dtype == torch.float32
    assert heat.isfinite().all()
    assert all(one.max() == 1 and one.std() > 0.01 for one in heat)
    return heat


def built(name):
    """Random weights, and batch norms that have seen pictures: else what MobileNetV3 makes of a picture fades away."""
    torch.manual_seed(0)
    model = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=5)
    with torch.no_grad():
        model(x)
    return model.eval()


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large", "fcn_resnet50"])
def test_torchvision_segmentation_in_four_lines(name):
    model = built(name)
    heat = HiResCAM(model)(x, SemanticSegmentationTarget(2))

    checked(heat)
    alone = torch.cat([HiResCAM(model)(x[[i]], SemanticSegmentationTarget(2)) for i in range(2)])
    torch.testing.assert_close(alone, heat, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="such as SemanticSegmentationTarget"):
        HiResCAM(model)(x)
    with pytest.raises(ValueError, match="such as SemanticSegmentationTarget"):
        HiResCAM(model)(x, 2)


def test_segformer_in_four_lines():
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(
        SegformerConfig(num_labels=5, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], decoder_hidden_size=16)
    ).eval()
    heat = HiResCAM(model)(dict(pixel_values=x), SemanticSegmentationTarget(2))

    checked(heat)


def test_a_layer_by_name_and_a_pixel():
    model = built("fcn_resnet50")
    heat = HiResCAM(model, "backbone.layer4")(x, SemanticSegmentationTarget(2, (40, 100)))

    checked(heat)
    weight = heat / heat.sum((1, 2), keepdim=True)
    row, column = torch.arange(96.0)[:, None], torch.arange(128.0)
    for one in weight:  # what speaks for a pixel lies around it
        assert ((one * row).sum() - 40).abs() < 24
        assert ((one * column).sum() - 100).abs() < 32
