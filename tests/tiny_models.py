"""Small models that several test files look at, and what an untrained model needs before it has anything to explain."""

import timm
from torch import nn


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
