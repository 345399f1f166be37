"""Embeddings, texts and written words as targets: small transformers with random weights, the models' own numbers as oracle."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
)

from gradcam_nb import FinerCAM, GradCAM, GradECLIP, HiResCAM, LayerCAM, LeGrad, ReciproCAM, explain, list_layers, record
from gradcam_nb.imaging.preprocess import Preprocess
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import CLASSES, TEST, scene, scenes
from gradcam_nb.targets.image_text import ImageTextClassifier, ImageTextTarget
from gradcam_nb.targets.similarity import DifferenceTarget, SimilarityTarget, embedding_of
from gradcam_nb.targets.token import GeneratedTokenTarget

SIZE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
TEXT, VISION = dict(SIZE, vocab_size=99, max_position_embeddings=8, eos_token_id=98), dict(SIZE, image_size=32, patch_size=8)
LAYER = "model.vision_model.encoder.layers.1.layer_norm1"


def prompts():
    return dict(
        input_ids=torch.tensor([[1, 5, 6, 98], [1, 7, 98, 98], [1, 8, 9, 98]]),
        attention_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]]),
    )


def built(kind):
    torch.manual_seed(0)
    if kind == "clip":
        return CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)).eval()
    return SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION)).eval()


class OpenClip(nn.Module):
    """What open_clip's models have in common: two encoders, a scale, and in SigLIP's case an offset."""

    def __init__(self, bias=None):
        super().__init__()
        torch.manual_seed(1)
        self.visual = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(8, 16),
        )
        self.transformer = nn.Sequential(nn.Embedding(99, 16), nn.Dropout())
        self.logit_scale, self.logit_bias = nn.Parameter(torch.tensor(3.0)), bias if bias is None else nn.Parameter(torch.tensor(bias))

    def encode_image(self, image):
        return self.visual(image)

    def encode_text(self, text):
        return self.transformer(text).mean(1)


# ---------------------------------------------------------------- image and text


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_classifier_is_the_model(kind):
    """Its scores are `logits_per_image`, and a map of it is the map of the model itself, asked for the same number."""
    model, x = built(kind), torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    classifier = ImageTextClassifier(model, prompts())
    with torch.no_grad():
        assert torch.allclose(classifier(x), model(pixel_values=x, **prompts()).logits_per_image, atol=1e-5)
    layer = model.get_submodule(LAYER.removeprefix("model."))
    own = record(model, [layer], dict(pixel_values=x) | prompts(), lambda output: output.logits_per_image[:, 1].sum())
    mine = record(classifier, [LAYER], x, lambda output: output[:, 1].sum())
    assert torch.allclose(mine.gradients[layer][0], own.gradients[layer][0], rtol=1e-3, atol=1e-5)
    assert own.gradients[layer][0].any()


# A method, and what it is told. SigLIP pools by an attention of its own, and has no class token: GradECLIP asks for one.
AT_LAYER = dict(target_layers=LAYER)
ON_BOTH = [
    (GradCAM, AT_LAYER),
    (HiResCAM, AT_LAYER),
    (LayerCAM, AT_LAYER),
    (FinerCAM, AT_LAYER),
    (LeGrad, {}),
    (ReciproCAM, AT_LAYER | dict(progress=False)),
]


@pytest.mark.parametrize(
    "kind, method, how", [("clip", GradECLIP, {}), *((kind, *method) for kind in ("clip", "siglip") for method in ON_BOTH)]
)
def test_every_method_and_an_int(kind, method, how):
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    cam = method(ImageTextClassifier(built(kind), prompts()), **how)
    heat = cam(x, 2)
    assert heat.shape == (2, 32, 32)
    assert heat.isfinite().all()
    assert heat.amax() == 1
    assert torch.allclose(heat, torch.cat([cam(x[[i]], 2) for i in range(2)]), atol=1e-3)


def test_texts_are_encoded_once_without_a_trace():
    model = OpenClip().train()
    model.visual.eval()
    flags, calls = [m.training for m in model.modules()], []
    model.transformer.register_forward_hook(lambda *_: calls.append(1))
    classifier = ImageTextClassifier(model, torch.tensor([[1, 2], [3, 4]]))
    assert [m.training for m in model.modules()] == flags
    assert len(calls) == 1
    assert torch.allclose(
        classifier.text_features, F.normalize(model.transformer[0](torch.tensor([[1, 2], [3, 4]])).mean(1), dim=-1)
    )  # no dropout
    GradCAM(classifier, "model.visual.3")(torch.randn(2, 3, 16, 16), 0)
    assert len(calls) == 1
    assert not classifier.text_features.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert "text_features" in dict(classifier.named_buffers())
    assert classifier.half().text_features.dtype == torch.float16


@pytest.mark.parametrize("bias", [None, -10.0])
def test_open_clip(bias):
    model, x, tokens = OpenClip(bias).eval(), torch.randn(2, 3, 16, 16), torch.tensor([[1, 2], [3, 4], [5, 6]])
    e, t = F.normalize(model.encode_image(x), dim=-1), F.normalize(model.encode_text(tokens), dim=-1)
    expected = model.logit_scale.exp() * e @ t.T + (bias or 0)
    classifier = ImageTextClassifier(model, tokens, ["a", "b", "c"])
    assert torch.allclose(classifier(x), expected, atol=1e-5)
    assert classifier.multi_label == (bias is not None)
    assert torch.allclose(ImageTextClassifier(model, model.encode_text(tokens))(x), expected, atol=1e-5)  # embeddings that are ready
    target = ImageTextTarget(t[1], scale=model.logit_scale.exp())
    assert torch.allclose(target(e[0]) + (bias or 0), expected[0, 1], atol=1e-5)
    heat = GradCAM(classifier, "model.visual.3")(x, 1)
    assert torch.allclose(GradCAM(model.visual, "3")(x, ImageTextTarget(t[1])), heat, atol=1e-4)


def test_older_transformers_give_tensors():
    class Older(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.inner, self.logit_scale = model, model.logit_scale

        def get_text_features(self, **inputs):
            return self.inner.get_text_features(**inputs).pooler_output

        def get_image_features(self, pixel_values):
            return self.inner.get_image_features(pixel_values).pooler_output

    model, x = built("clip"), torch.randn(1, 3, 32, 32)
    assert torch.allclose(ImageTextClassifier(Older(model), prompts())(x), ImageTextClassifier(model, prompts())(x))


def test_explain_by_the_name_of_a_text():
    named = explain(
        scene(TEST).image,
        ImageTextClassifier(built("clip"), prompts(), ["a dog", "a cat", "a car"]),
        target="a cat",
        layer=LAYER,
        preprocess=Preprocess((32, 32), resize="squash"),
    )
    assert named.target.name == "a cat"
    assert named.heat_map.shape == (32, 32)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: ImageTextClassifier(nn.Linear(2, 2), prompts()), TypeError, "get_image_features"),
        (lambda: ImageTextClassifier(built("clip"), prompts()["input_ids"]), TypeError, "a dict with input_ids"),
        (lambda: ImageTextClassifier(OpenClip(), prompts()), TypeError, "a tensor of token numbers"),
        (lambda: ImageTextClassifier(OpenClip(), torch.randn(16)), ValueError, "K × D"),
        (lambda: ImageTextClassifier(OpenClip(), torch.randn(3, 16), ["a"]), ValueError, "1 names for 3 texts"),
        (lambda: SimilarityTarget(torch.zeros(3)), ValueError, "no direction"),
        (lambda: SimilarityTarget(torch.ones(3), mean=torch.ones(3)), ValueError, "no direction"),
        (lambda: SimilarityTarget(torch.ones(3))(torch.ones(4)), ValueError, "same model"),
        (lambda: SimilarityTarget(torch.ones(3))(torch.ones(3, 7, 7)), ValueError, "no embedding of shape D"),
        (lambda: SimilarityTarget(torch.ones(3))({}), ValueError, "no embedding of shape D"),
        (lambda: GeneratedTokenTarget(9)(torch.ones(4, 9)), ValueError, "pass 0 to 8"),
        (lambda: GeneratedTokenTarget(1, 4)(torch.ones(4, 9)), ValueError, "pass -4 to 3"),
        (lambda: GeneratedTokenTarget(1)(torch.ones(4)), ValueError, "T × V"),
    ],
)
def test_errors_are_one_line(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- similarity


def test_cosine():
    torch.manual_seed(0)
    e, refs, mean = torch.randn(16), torch.randn(4, 16), torch.randn(16)
    assert torch.allclose(SimilarityTarget(refs)(e), F.cosine_similarity(e[None], refs).mean(), atol=1e-6)
    assert torch.allclose(DifferenceTarget(refs[0])(e), 1 - F.cosine_similarity(e, refs[0], dim=0), atol=1e-6)
    assert torch.allclose(SimilarityTarget(refs, mean)(e), F.cosine_similarity(e[None] - mean, refs - mean).mean(), atol=1e-6)
    assert torch.allclose(SimilarityTarget(refs, cosine=False)(e), (refs @ e / refs.norm(dim=1)).mean(), atol=1e-6)
    assert SimilarityTarget(e)(e) == pytest.approx(1)
    assert DifferenceTarget(e)(-e) == pytest.approx(2)


def test_embeddings_of_transformers():
    """Through the engine: the vector that the model is known for, found in its output."""
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=16)).eval()
    dino = Dinov2Model(Dinov2Config(**{k: v for k, v in VISION.items() if k != "intermediate_size"})).eval()
    for model, name, layer in (
        (tower, "image_embeds", "vision_model.encoder.layers.1.layer_norm1"),
        (dino, "pooler_output", "encoder.layer.1.norm1"),
    ):
        with torch.no_grad():
            output = model(x)
        assert torch.equal(embedding_of({key: value[0] for key, value in output.items()}), output[name][0])
        names = [one.name for one in list_layers(model, x)]
        layer = layer if layer in names else next(n for n in names if n.endswith("layers.1.layer_norm1") or n.endswith("layer.1.norm1"))
        cam, target = GradCAM(model, layer), SimilarityTarget(output[name][2])  # of the third picture, for the other two
        assert torch.allclose(cam(x[:2], target), torch.cat([cam(x[[i]], target) for i in range(2)]), atol=1e-3)


def test_what_two_scenes_have_in_common():
    """References that share one kind of object: the peak lies on that object, and without the mean embedding more often than with it."""
    model, batch = copy.deepcopy(load("scenes-cnn")), scenes(160, TEST + 2000)
    model.fc, x = nn.Identity(), batch.images * 2 - 1
    with torch.no_grad():
        e = torch.cat([model(part) for part in x.split(80)])
    cam, shown = GradCAM(model, "layer4"), batch.labels[:20].nonzero().tolist()

    def hits(**how):
        targets = [SimilarityTarget(e[20:][batch.labels[20:, c] > 0], **how) for _, c in shown]
        peaks = cam(x[[i for i, _ in shown]], targets).flatten(1).argmax(1)
        return sum(batch.masks[i, c].flatten()[p].item() for (i, c), p in zip(shown, peaks)) / len(shown)

    plain, less = hits(), hits(mean=e[20:].mean(0))
    assert plain > 0.7, (plain, less)
    assert less > 0.85, (plain, less)
    assert less > plain, (plain, less)


def test_names_are_a_text_encoder():
    """The scenes' network taken apart into two encoders: asked for a name, the peak lies on the object."""

    class Two(OpenClip):
        def __init__(self):
            super().__init__()
            self.visual = copy.deepcopy(load("scenes-cnn"))
            self.transformer = nn.Embedding.from_pretrained(self.visual.fc.weight.detach())
            self.visual.fc = nn.Identity()

    model, batch = ImageTextClassifier(Two(), torch.arange(12)[:, None], CLASSES), scenes(20, TEST + 2000)
    rows, names = batch.labels.nonzero(as_tuple=True)
    peaks = GradCAM(model, "model.visual.layer4")(batch.images[rows] * 2 - 1, names).flatten(1).argmax(1)
    assert batch.masks[rows, names].flatten(1).gather(1, peaks[:, None]).float().mean() > 0.85


# ---------------------------------------------------------------- a written word


@pytest.fixture(scope="module")
def llava():
    """A LLaVA with random weights: two pictures of 16 patches, and a prompt with three tokens behind them."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(**VISION | dict(num_hidden_layers=3))
    text = LlamaConfig(**SIZE, vocab_size=64, num_key_value_heads=4, max_position_embeddings=64, pad_token_id=0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=63, image_seq_length=16)
    ).eval()
    tokens = torch.tensor([[1, *[63] * 16, 5, 6, 7], [1, *[63] * 16, 8, 9, 4]])
    return model, dict(pixel_values=torch.randn(2, 3, 32, 32), input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)


def row(inputs, i):
    return {name: t[[i]] if isinstance(t, torch.Tensor) else t for name, t in inputs.items()}


@pytest.mark.parametrize("method", [GradCAM, HiResCAM])
@pytest.mark.parametrize("layer", ["model.multi_modal_projector.linear_1", "layers.1", "layers.1.layer_norm1", "layers.0"])
def test_llava(llava, method, layer):
    model, inputs = llava
    layer = next(name for name, _ in model.named_modules() if name.endswith(layer) and "language" not in name)
    cam = method(model, layer)
    targets = [GeneratedTokenTarget(9), GeneratedTokenTarget(None, probability=True)]
    heat = cam(inputs, targets)
    assert heat.shape == (2, 32, 32)
    assert heat.isfinite().all()
    assert heat.amax() == 1
    assert torch.allclose(heat, torch.cat([cam(row(inputs, i), targets[i]) for i in range(2)]), atol=1e-3)


def test_nothing_told_to_a_llava(llava):
    """The layer that is found holds patches, not words; views of the picture leave the words alone."""
    model, inputs = llava
    cam = HiResCAM(model)
    heat = cam(inputs, GeneratedTokenTarget(9), aug_smooth=True)
    assert heat.shape == (2, 32, 32)
    assert (heat.amax((1, 2)) == 1).all()
    name = next(name for name, module in model.named_modules() if module is cam.target_layers[0])
    assert "language" not in name, name


def test_a_token_by_hand(llava):
    """The projector's gradient without the engine: the same word, from the same patches."""
    model, inputs = llava
    projector, kept = model.model.multi_modal_projector, []

    def keep(module, args, output):
        kept.append(output.detach().requires_grad_())
        return kept[0]

    handle = projector.register_forward_hook(keep)
    try:
        logits = model(**inputs).logits[0, -2]
    finally:
        handle.remove()
    for target, by_hand in (
        (GeneratedTokenTarget(9, -2), logits[9]),
        (GeneratedTokenTarget(9, -2, probability=True), logits.log_softmax(-1)[9]),
    ):
        r = record(model, [projector], inputs, lambda output, target=target: target(dict(logits=output.logits[0])))
        (expected,) = torch.autograd.grad(by_hand, kept[0], retain_graph=True)
        assert torch.allclose(r.gradients[projector][0], expected, atol=1e-6), target
        assert expected[0].any(), target
        assert not expected[1].any(), target


def test_the_token_it_would_write(llava):
    model, inputs = llava
    with torch.no_grad():
        logits = model(**inputs).logits
        written = model.generate(**row(inputs, 0), max_new_tokens=1, do_sample=False)[0, -1]
    assert GeneratedTokenTarget(None)(logits[0]) == GeneratedTokenTarget(written)(logits[0]) == logits[0, -1].max()
    total = sum(GeneratedTokenTarget(v, probability=True)(logits[0]).exp() for v in range(64))
    assert total == pytest.approx(1, abs=1e-5)


def test_rows_padded_on_the_left(llava):
    model, inputs = llava
    padded = inputs | dict(input_ids=F.pad(inputs["input_ids"], (3, 0)), attention_mask=F.pad(inputs["attention_mask"], (3, 0)))
    padded["position_ids"] = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
    cam = HiResCAM(model, "model.multi_modal_projector.linear_1")
    assert torch.allclose(cam(padded, GeneratedTokenTarget(5)), cam(inputs, GeneratedTokenTarget(5)), atol=1e-3)
