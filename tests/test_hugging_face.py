"""What comes with a model of Hugging Face: its processor, its batches, the names of its classes, the size of its pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from gradcam_nb import AttentionRollout, GradCAM, explain, list_layers, preprocess_for, record, suggest_layer, verify_layout
from gradcam_nb.classes import class_names

transformers = pytest.importorskip("transformers")

NAMES = {0: "a cat", 1: "a dog", 2: "a bee"}
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=96, patch_size=16)
PROCESSORS = {
    "ViT": ("ViTImageProcessor", {}),
    "ViT, 96": ("ViTImageProcessor", dict(size=dict(height=96, width=64))),
    "ViT, not normalised": ("ViTImageProcessor", dict(do_normalize=False)),
    "CLIP": ("CLIPImageProcessor", {}),
    "BiT": ("BitImageProcessor", dict(size=dict(shortest_edge=256))),
    "ConvNeXt, 224": ("ConvNextImageProcessor", dict(size=dict(shortest_edge=224))),
    "ConvNeXt, 384": ("ConvNextImageProcessor", {}),
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SMALL, id2label=NAMES, label2id={name: i for i, name in NAMES.items()})
    return transformers.ViTForImageClassification(config).eval()


def a_picture(width, height):
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(320, 240), (240, 400)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_is_a_preprocess(name, size, model):
    kind, options = PROCESSORS[name]
    processor, picture = getattr(transformers, kind)(**options), a_picture(*size)
    preprocess = preprocess_for(model, processor)
    theirs, ours = processor(images=picture, return_tensors="pt")["pixel_values"], preprocess(picture)
    assert ours.shape == theirs.shape
    pixel = 1 / 255 / min(preprocess.std)
    assert (ours - theirs).abs().max() <= 2.5 * pixel  # bicubic on tensors and on PIL images rounds in other places
    assert (ours - theirs).abs().mean() < 0.3 * pixel


def test_a_processor_of_no_fixed_size(model):
    with pytest.raises(ValueError, match="no fixed size"):
        preprocess_for(model, transformers.ViTImageProcessor(size=dict(longest_edge=300)))


def test_what_a_processor_gives_is_taken_as_it_is(model):
    batch = transformers.ViTImageProcessor(size=dict(height=96, width=96))(images=a_picture(120, 160), return_tensors="pt")
    assert not isinstance(batch, dict)
    torch.testing.assert_close(GradCAM(model)(batch, 1), GradCAM(model)(dict(batch), 1))
    assert AttentionRollout(model)(batch).shape == (1, 96, 96)
    layer = suggest_layer(model, batch)
    assert layer.name in [one.name for one in list_layers(model, batch)]
    assert verify_layout(model, layer.module, batch).grid == (6, 6)
    assert len(record(model, [layer.module], batch).activations) == 1


def test_classes_and_sizes_are_the_models(model):
    assert class_names(model, 3) == [*NAMES.values()]
    assert preprocess_for(model).size == (96, 96)
    e = explain(a_picture(120, 160), model, target="a dog", preprocess=transformers.ViTImageProcessor(size=dict(height=96, width=96)))
    assert e.target.name == "a dog"
    assert {seen.name for seen in e.top} == {*NAMES.values()}
    assert e.share == 1
    nameless = transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, num_labels=4))
    assert class_names(nameless, 4) == ["0", "1", "2", "3"]
