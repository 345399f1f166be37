"""Small models that several test files look at, and what an untrained model needs before it has anything to explain."""

from collections import OrderedDict

import timm
from torch import nn
from torchvision.models import vgg


def tiny_vit(height, width, depth, **options):
    """A vision transformer with patches of 8 × 8, two heads and 24 channels."""
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=(height, width), patch_size=8, embed_dim=24, num_heads=2, depth=depth, num_classes=5, **options
    )


def draw_zeroed_weights(model, std=1.0):
    """Random weights where all are zero: an untrained head often starts so, and has no gradient to give."""
    for p in model.parameters():
        if p.ndim >= 2 and not p.any():
            nn.init.normal_(p, std=std)


def vgg11():
    """torchvision's, with 640 channels in its head in place of 4,096: half a gigabyte less."""
    features = vgg.make_layers(vgg.cfgs["A"], batch_norm=False)
    for module in features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)
    head = nn.Sequential(nn.Linear(512 * 7 * 7, 640), nn.ReLU(inplace=True), nn.Linear(640, 1000))
    return nn.Sequential(OrderedDict(features=features, avgpool=nn.AdaptiveAvgPool2d(7), flat=nn.Flatten(), classifier=head))
