"""How a layer lies on the picture is never guessed in silence: right, or said to be a guess; each beside others of its kind."""

import re

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from gradcam_nb import (
    RISE,
    AttentionRelevance,
    AttentionRollout,
    FullGrad,
    GradCAM,
    GradECLIP,
    HiResCAM,
    LayerCAM,
    LeGrad,
    Preprocess,
    explain,
    list_layers,
)
from gradcam_nb.compat import torchcam
from gradcam_nb.engine.record import record
from gradcam_nb.engine.settle import settle_layout


def layer_map(model, layer, x, target=1):
    "HiResCAM's raw map of a layer on the first picture."
    cam = HiResCAM(model, layer)
    run = cam.run(x, target)
    return cam.get_layer_map(run, next(run.calls(run.layers[0])))[0]


def product_by_hand(model, layer, x, score):
    "What a layer gives times its gradient."
    kept = record(model, [layer], x, score)
    (module,) = kept.layers
    return kept.activations[module][0] * kept.gradients[module][0]


# Channels in front or behind.


class Pooled(nn.Module):
    "A map pooled in one direction, whose channels are as many as its places."

    def __init__(self, channels, pool, last, fraction=1):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.pool, self.out, self.last = nn.Conv2d(1, channels, 3, padding=1), nn.MaxPool2d(pool), nn.Identity(), last
        self.body = Body(self.conv, self.pool, last)
        self.head = nn.Linear(channels, 3)

    def forward(self, x):
        maps = self.body(x)
        return self.head(maps.mean((1, 2) if self.last else (2, 3)))


class Body(nn.Module):
    def __init__(self, conv, pool, last):
        super().__init__()
        self.conv, self.pool, self.last = conv, pool, last

    def forward(self, x):
        maps = self.pool(self.conv(x).relu())
        return maps.movedim(1, -1) if self.last else maps


@pytest.mark.parametrize(
    "channels, pool, last, size",
    [(64, (2, 1), False, 64), (32, (2, 1), True, 64), (32, (1, 2), False, 32), (16, (2, 2), False, 32), (16, (2, 2), True, 32)],
)
def test_channels_first_or_last(channels, pool, last, size):
    model = Pooled(channels, pool, last).eval()
    x = torch.randn(1, 1, size, size) * 0.05
    x[..., size // 8 : size // 4, size // 2 : size * 3 // 4] += 2
    by_hand = product_by_hand(model, "body", x, lambda output: output[0, 1])[0]
    truth = by_hand.sum(-1 if last else 0)
    torch.testing.assert_close(layer_map(model, "body", x), truth, rtol=1e-4, atol=1e-6)


# Inputs whose places are not their last axes.


class Series(nn.Module):
    def __init__(self, features):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv1d(features, 16, 5, padding=2), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.conv(x.mT).relu().mean(-1))


class Recurrent(nn.Module):
    def __init__(self, features):
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.norm, self.head = nn.LSTM(features, 12, batch_first=True), nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.norm(self.lstm(x)[0]).mean(1))


class ChannelsBehind(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.conv(x.movedim(-1, 1)).relu().mean((2, 3)))


INPUTS = {
    "a series": (lambda: Series(6), "conv", (2, 100, 6), (1,)),
    "points": (lambda: Series(3), "conv", (2, 256, 3), (1,)),
    "a recurrent network": (lambda: Recurrent(7), "norm", (2, 40, 7), (1,)),
    "a picture": (ChannelsBehind, "conv", (2, 32, 48, 3), (1, 2)),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("method", [HiResCAM, GradCAM, LayerCAM, RISE])
def test_places_elsewhere(name, method):
    """Without `places` an error that says what to pass; with it a map over the places, the same as for the turned input by hand."""
    build, layer, shape, places = INPUTS[name]
    model, x = build().eval(), torch.randn(*shape)
    how = dict(n_masks=40, progress=False) if method is RISE else {}
    named = [] if method is RISE else [layer]
    with pytest.raises(ValueError, match=re.escape(f"places={places}")):
        method(model, *named, **how)(x, 1)
    heat = method(model, *named, places=places, **how)(x, 1)
    assert heat.shape == tuple(shape[axis] for axis in (0, *places)) and heat.amax(tuple(range(1, heat.ndim))).eq(1).all()
    alone = method(model, *named, places=places, **how)(x[1:], 1)
    torch.testing.assert_close(heat[1:], alone, rtol=1e-3, atol=1e-4)
    if method is HiResCAM:
        by_hand = product_by_hand(model, layer, x, lambda output: output[:, 1].sum())
        raw = by_hand.sum(1 if layer == "conv" else -1).clamp(min=0)
        raw = F.interpolate(raw[:, None], heat.shape[1:], mode="bilinear" if raw.ndim == 3 else "linear")[:, 0]
        torch.testing.assert_close(heat, raw / raw.flatten(1).amax(1).view(-1, *[1] * len(places)), rtol=1e-3, atol=1e-4)


def test_a_spectrogram_without_a_channel():
    config = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_length=128, num_mel_bins=64)
    torch.manual_seed(0)
    model, sound = transformers.ASTForAudioClassification(transformers.ASTConfig(**config, num_labels=4)).eval(), torch.randn(2, 128, 64)
    with pytest.raises(ValueError, match=r"places=\(1, 2\)"):
        GradCAM(model)(sound, 1)
    # Patches of 16 × 16 every 10: 12 in time and 5 in frequency, counted along time first.
    layer = "audio_spectrogram_transformer.layers.1.layernorm_before"
    heat = HiResCAM(model, layer, places=(1, 2))(sound, 1)
    told = HiResCAM(model, layer, lambda t: t[:, 2:].unflatten(1, (5, 12)).permute(0, 3, 2, 1), places=(1, 2))(sound, 1)
    assert heat.shape == (2, 128, 64)
    torch.testing.assert_close(heat, told)


@pytest.mark.parametrize("places", [(), (0,), (1, 1), (3,), (-1,)])
def test_places_that_cannot_be(places):
    with pytest.raises(ValueError, match="places: got"):
        HiResCAM(Series(6).eval(), "conv", places=places)(torch.randn(2, 100, 6), 1)


# Tokens without a place, elsewhere than in front.


class Tokens(nn.Module):
    def __init__(self, before, extra, act=nn.Identity()):
        super().__init__()
        torch.manual_seed(3)
        self.cut, self.extra = nn.Conv2d(3, 16, 8, 8), nn.Parameter(torch.randn(1, extra, 16))
        self.norm, self.head, self.act, self.before = nn.LayerNorm(16), nn.Linear(16, 4), act, before

    def forward(self, x):
        t = self.cut(x).flatten(2).mT
        tokens = torch.cat([t[:, : self.before], self.extra.expand(len(t), -1, -1), t[:, self.before :]], 1)
        return self.head(self.act(self.norm(tokens)).mean(1))


@pytest.mark.parametrize(
    "before, extra, size", [(0, 1, (64, 64)), (32, 1, (64, 64)), (64, 4, (64, 64)), (48, 10, (64, 48)), (0, 5, (48, 64))]
)
def test_tokens_without_a_place(before, extra, size):
    model = Tokens(before, extra).eval()
    x = torch.randn(1, 3, *size) * 0.1
    x[..., 8:16, 16:24] += 3
    by_hand = product_by_hand(model, "norm", x, lambda output: output[0, 1])[0].sum(-1)
    truth = torch.cat([by_hand[:before], by_hand[before + extra :]]).view(size[0] // 8, size[1] // 8)
    torch.testing.assert_close(layer_map(model, "norm", x), truth, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("before, extra", [(0, 1), (32, 1), (64, 4), (32, 3)])
def test_fullgrad_lays_every_bias_where_its_token_stands(before, extra):
    """Where the network keeps its extra tokens makes no difference to the picture."""
    torch.manual_seed(1)
    x, usual, moved = torch.randn(1, 3, 64, 64), Tokens(0, extra, nn.Tanh()).eval(), Tokens(before, extra, nn.Tanh()).eval()
    nn.init.normal_(usual.norm.bias)
    moved.norm.bias = usual.norm.bias
    torch.testing.assert_close(FullGrad(moved)(x, 1), FullGrad(usual)(x, 1))
    cam = FullGrad(moved)
    cam(x, 1)
    on_tokens = [place.layout for place in (how for _, how in cam.biased.values()) if len(place.shape) == 3]
    assert [layout.places > 0 for layout in on_tokens] == [True]


def test_lists_say_how_a_layout_is_known():
    torch.manual_seed(0)
    model, x = Tokens(64, 4).eval(), torch.randn(1, 3, 64, 64)
    layers = {layer.name: layer for layer in list_layers(model, x)}
    assert str(layers["cut"].layout).endswith("no other reading of the shape fits the model")
    assert "likely, not sure" in str(layers["norm"].layout) and "readings" in layers["norm"].layout.doubt
    cam = GradCAM(model, "norm")
    cam(x, 1)
    assert "answers at" in str(cam.layouts[model.norm])
    layer = next(layer for layer in list_layers(model, x) if layer.name == "norm")
    assert layer.layout == cam.layouts[model.norm] and layer.grid == (8, 8)
    numbers = torch.randn(1, 68, 16)
    assert torch.equal(layer.reshape(numbers), numbers[:, :64].mT.unflatten(2, (8, 8)))


def test_an_explanation_says_how_the_layout_is_known():
    said = explain("scene:3").summary()["layouts"]
    assert said == {"layer4": "channels first: no other reading of the shape fits the model"}
    model = Tokens(64, 4).eval()
    e = explain("scene:3", model, preprocess=Preprocess((64, 64)), layer="norm")
    assert "4 behind: answers at" in e.summary()["layouts"]["norm"]


def test_yolos_has_its_detections_behind():
    config = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=[64, 96], patch_size=16)
    torch.manual_seed(0)
    model = transformers.YolosForObjectDetection(transformers.YolosConfig(**config, num_detection_tokens=10, num_labels=3)).eval()
    layer = model.vit.encoder.layer[1]
    layout = settle_layout(model, layer, (1, 35, 32), torch.randn(1, 3, 64, 96))
    tokens = torch.randn(1, 35, 32)
    assert torch.equal(layout.reshape_transform(tokens), tokens[:, 1:25].mT.unflatten(2, (4, 6)))


class Attending(nn.Module):
    "A transformer that knows no order of its tokens: their places are summed into them."

    def __init__(self, order, spare):
        super().__init__()
        torch.manual_seed(0)
        self.cut, self.place, self.spare = (
            nn.Conv2d(3, 16, 8, 8),
            nn.Parameter(torch.randn(1, 24, 16)),
            nn.Parameter(torch.randn(1, spare, 16)),
        )
        self.first, self.second = (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2))
        self.head = nn.Linear(16, 4)
        self.order, self.back = order, order.argsort()

    def forward(self, x):
        patches = self.cut(x).flatten(2).mT + self.place
        tokens = torch.cat([self.spare.expand(len(x), -1, -1), patches], 1)[:, self.order]
        return self.head(self.second(self.first(tokens))[:, self.back][:, 0])


def orders(spare):
    "As they come; the tokens without a place behind; all but the first behind; columns; columns and behind."
    front, places = torch.arange(spare), torch.arange(24) + spare
    columns = places.view(4, 6).T.flatten()
    return [
        torch.cat(parts) for parts in ([front, places], [places, front], [front[:1], places, front[1:]], [front, columns], [columns, front])
    ]


@pytest.mark.parametrize("method", [AttentionRollout, AttentionRelevance, LeGrad, GradECLIP])
@pytest.mark.parametrize("spare", [1, 5])
def test_attention_methods_know_the_order_of_their_tokens(method, spare):
    x = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    usual, *others = [method(Attending(order, spare).eval())(x, 1) for order in orders(spare)]
    for heat in others:
        torch.testing.assert_close(heat, usual, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spare", [1, 5])
def test_legrad_of_torchcams_interface_knows_it_too(spare):
    x = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))

    def drawn(order):
        model = Attending(order, spare).eval()
        with torchcam.LeGrad(model, [model.first, model.second]) as extractor:
            return extractor(1, model(x))[0]

    usual, *others = [drawn(order) for order in orders(spare)]
    assert usual.shape[-2:] == (4, 6)
    for heat in others:
        torch.testing.assert_close(heat, usual, rtol=1e-3, atol=1e-4)


# Volumes.


class Volume(nn.Module):
    def __init__(self, patch):
        super().__init__()
        torch.manual_seed(0)
        self.cut, self.norm, self.head = nn.Conv3d(1, 16, patch, patch), nn.LayerNorm(16), nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.norm(self.cut(x).flatten(2).mT).mean(1))


@pytest.mark.parametrize(
    "size, patch",
    [
        ((48, 48, 24), (8, 8, 4)),
        ((64, 64, 16), (16, 16, 4)),
        ((16, 48, 48), (4, 8, 8)),
        ((12, 80, 80), (3, 16, 16)),
        ((32, 32, 32), (8, 8, 8)),
    ],
)
def test_volumes_with_patches_that_are_no_cubes(size, patch):
    model, x = Volume(patch).eval(), torch.randn(1, 1, *size)
    truth = product_by_hand(model, "norm", x, lambda output: output[0, 1])[0].sum(-1).view([n // p for n, p in zip(size, patch)])
    torch.testing.assert_close(layer_map(model, "norm", x), truth, rtol=1e-4, atol=1e-6)


# Films and slabs.


class Slab(nn.Module):
    "Modalities × slices × rows × columns."

    def __init__(self, channels):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv3d(channels, 8, (1, 3, 3), (1, 2, 2), (0, 1, 1)), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3, 4)))


@pytest.mark.parametrize("channels, slices", [(4, 3), (2, 1), (6, 3), (4, 5), (1, 3), (3, 3), (8, 3)])
def test_slabs_of_few_slices(channels, slices):
    model, x = Slab(channels).eval(), torch.randn(2, channels, slices, 32, 24)
    truth = product_by_hand(model, "conv", x, lambda output: output[:, 1].sum()).sum(1)
    for method in (HiResCAM, GradCAM, LayerCAM):
        assert method(model, "conv")(x, 1).shape == (2, slices, 32, 24)
    torch.testing.assert_close(layer_map(model, "conv", x), truth[0], rtol=1e-4, atol=1e-6)
    (layer,) = [layer for layer in list_layers(model, x) if layer.name == "conv"]
    assert layer.grid == (slices, 16, 12)
    assert RISE(model, n_masks=8, progress=False)(x, 1).shape == (2, slices, 32, 24)


class PerFrame(nn.Module):
    "Frames × channels × rows × columns."

    def __init__(self, channels):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(channels, 8, 3, 2, 1), nn.Linear(8, 3)

    def forward(self, x):
        frames = self.conv(x.flatten(0, 1)).relu().mean((2, 3)).unflatten(0, x.shape[:2])
        return self.head(frames * torch.arange(x.shape[1])[:, None]).mean(1)


@pytest.mark.parametrize("channels, frames", [(3, 6), (10, 6), (4, 3), (1, 5), (6, 7)])
def test_films_of_any_number_of_channels(channels, frames):
    model, x = PerFrame(channels).eval(), torch.randn(2, frames, channels, 32, 24)
    heat = HiResCAM(model, "conv", lambda t: t.unflatten(0, (2, frames)).movedim(2, 1))(x, 1)
    assert heat.shape == (2, frames, 32, 24) and not heat[:, 0].any()  # the first frame counts nothing
    told = HiResCAM(model, "conv", lambda t: t.unflatten(0, (2, frames)).movedim(2, 1), places=(1, 3, 4))(x, 1)
    assert torch.equal(heat, told)
    masks = RISE(model, n_masks=64, progress=False)(x, 1)
    assert masks.shape == heat.shape


class Tubes(nn.Module):
    "A film cut into tubes, with a token more behind them."

    def __init__(self, tube):
        super().__init__()
        torch.manual_seed(0)
        self.cut, self.extra = nn.Conv3d(3, 16, tube, tube), nn.Parameter(torch.randn(1, 1, 16))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 2)

    def forward(self, x):
        tokens = self.cut(x.transpose(1, 2)).flatten(2).mT
        return self.head(self.norm(torch.cat([tokens, self.extra.expand(len(x), -1, -1)], 1)).mean(1))


@pytest.mark.parametrize("tube, size", [((2, 8, 8), (8, 32, 32)), ((1, 8, 8), (4, 32, 24)), ((4, 16, 8), (16, 64, 32))])
def test_films_cut_into_tubes(tube, size):
    model, x = Tubes(tube).eval(), torch.randn(1, size[0], 3, *size[1:])
    by_hand = product_by_hand(model, "norm", x, lambda output: output[0, 1])[0].sum(-1)
    truth = by_hand[:-1].view([n // p for n, p in zip(size, tube)])
    torch.testing.assert_close(layer_map(model, "norm", x), truth, rtol=1e-4, atol=1e-6)


class NoConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.each, self.head = nn.Linear(16, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.each(x).relu().mean((1, 2, 3)))


def test_film_or_slab_is_asked_where_nothing_tells():
    model, x = NoConvolution(), torch.randn(1, 4, 3, 16, 16)
    with pytest.raises(ValueError, match=r"places=\(1, 3, 4\) or places=\(2, 3, 4\)"):
        GradCAM(model)(x, 1)
    for places, size in (((1, 3, 4), (4, 16, 16)), ((2, 3, 4), (3, 16, 16))):
        assert RISE(model, n_masks=8, progress=False, places=places)(x, 1).shape == (1, *size)


# Answers and prompts are no places.


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 1, 1)

    def forward(self, features):
        return F.interpolate(self.conv(features), scale_factor=4).squeeze(1)


class Depth(nn.Module):
    def __init__(self, stride):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, stride, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 4 // stride, 1), nn.ReLU())
        self.decoder = Decoder()

    def forward(self, x):
        return self.decoder(self.body(x))


@pytest.mark.parametrize("size, stride", [((64, 64), 2), ((36, 64), 2), ((48, 48), 1)])
def test_an_answer_without_channels_is_no_layer(size, stride):
    model = Depth(stride).eval()
    cam = GradCAM(model)
    heat = cam(torch.randn(1, 3, *size), lambda depth: depth[5:20, 5:20].sum())
    assert cam.target_layers[0] is model.body and heat.shape == (1, *size)  # not what only draws the answer


def test_a_prompts_embedding_is_no_layer():
    vision = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=128, patch_size=16, output_channels=32)
    prompt = dict(hidden_size=32, image_size=128, patch_size=16, image_embedding_size=8)
    mask = dict(hidden_size=32, mlp_dim=64, num_hidden_layers=2, num_attention_heads=2, iou_head_hidden_dim=32)
    vision |= dict(global_attn_indexes=[2], window_size=4, mlp_dim=64, num_pos_feats=16)
    torch.manual_seed(0)
    config = transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=mask)
    model = transformers.SamModel(config).eval()
    inputs = dict(pixel_values=torch.randn(1, 3, 128, 128), input_points=torch.tensor([[[[60.0, 60.0]]]]))
    cam = GradCAM(model)
    cam(inputs, lambda out: out.iou_scores.max())
    (layer,) = [name for name, module in model.named_modules() if module is cam.target_layers[0]]
    assert layer.startswith("vision_encoder")


# Drawn layouts.


class Drawn(nn.Module):
    "A network whose layer `out` lies on the picture in a way that was drawn."

    def __init__(self, drawn):
        super().__init__()
        self.drawn, dim = drawn, drawn["channels"]
        self.cut = nn.Conv2d(3, dim, drawn["kernel"], drawn["stride"], padding=0 if drawn["tokens"] else drawn["kernel"][0] // 2)
        self.extra, self.out = nn.Parameter(torch.randn(1, sum(drawn["spare"]), dim)), Last(drawn, dim)

    def forward(self, x):
        return self.out(self.cut(x), self.extra).flatten(1).sum(1, keepdim=True)


class Last(nn.Module):
    def __init__(self, drawn, dim):
        super().__init__()
        self.drawn, self.scale = drawn, nn.Parameter(torch.rand(dim) + 0.5)

    def forward(self, maps, extra):
        maps = maps * self.scale.view(-1, 1, 1)
        if not self.drawn["tokens"]:
            maps = F.max_pool2d(maps.relu(), self.drawn["pool"])
            return maps.movedim(1, -1) if self.drawn["last"] else maps
        patches = (maps.mT if self.drawn["columns"] else maps).flatten(2).mT
        (a, b, c), half = extra.expand(len(maps), -1, -1).split(self.drawn["spare"], 1), patches.shape[1] // 2
        return torch.cat([a, patches[:, :half], b, patches[:, half:], c], 1)

    def truth(self, given, size):
        "The same at its places, cut out by hand."
        if not self.drawn["tokens"]:
            return given.movedim(-1, 1) if self.drawn["last"] else given
        grid = [(n - k) // s + 1 for n, k, s in zip(size, self.drawn["kernel"], self.drawn["stride"])]
        (a, b, _), n = self.drawn["spare"], grid[0] * grid[1]
        places = torch.cat([given[:, a : a + n // 2], given[:, a + n // 2 + b : a + b + n]], 1).mT
        return places.unflatten(2, grid[::-1]).mT if self.drawn["columns"] else places.unflatten(2, grid)


@st.composite
def layouts(draw):
    side = st.sampled_from([24, 32, 36, 40, 48, 56, 64, 72])
    drawn = dict(tokens=draw(st.booleans()), channels=draw(st.sampled_from([4, 8, 12, 16, 24, 32, 48, 64])), size=(draw(side), draw(side)))
    if drawn["tokens"]:
        patch = draw(st.tuples(*[st.sampled_from([4, 6, 8])] * 2))
        gap = draw(st.sampled_from([0, 0, -1, 2]))  # patches that overlap, or leave something out
        drawn |= dict(kernel=patch, stride=tuple(p + gap for p in patch), columns=draw(st.booleans()))
        drawn["spare"] = draw(st.sampled_from([(0, 0, 0), (1, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 7), (5, 0, 0), (0, 0, 4), (2, 0, 0)]))
    else:
        stride, pool = draw(st.tuples(*[st.sampled_from([1, 2, 4])] * 2)), draw(st.tuples(*[st.sampled_from([1, 2])] * 2))
        drawn |= dict(kernel=(3, 3), stride=stride, pool=pool, last=draw(st.booleans()), spare=(0, 0, 0))
    return drawn | dict(seed=draw(st.integers(0, 10**6)))


COUNT = {"right": 0, "said": 0}


def is_never_wrong(drawn):
    torch.manual_seed(drawn["seed"])
    model, x = Drawn(drawn).eval(), torch.randn(1, 3, *drawn["size"])
    given = record(model, ["out"], x).activations[model.out][0]
    try:
        layout = settle_layout(model, model.out, given.shape, x)
    except ValueError as error:
        assert "no agreement" in str(error) or "no places" in str(error)
        COUNT["said"] += 1
        return
    if layout.doubt:  # a map is drawn with a warning
        COUNT["said"] += 1
        return
    assert torch.equal(layout.reshape_transform(given), model.out.truth(given, drawn["size"])), (drawn, str(layout))
    COUNT["right"] += 1


def drawn_right(number):
    COUNT.update(right=0, said=0)
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]

    @settings(max_examples=number, deadline=None, derandomize=True, database=None, suppress_health_check=checks)
    @given(layouts())
    def run(drawn):
        is_never_wrong(drawn)

    run()
    share = COUNT["right"] / (COUNT["right"] + COUNT["said"])
    print(f"{COUNT['right']} of {COUNT['right'] + COUNT['said']} drawn layouts are read rightly with nothing told, none wrongly")
    return share


def test_drawn_layouts():
    assert drawn_right(200) >= 0.9


@pytest.mark.slow
def test_ten_thousand_drawn_layouts():
    assert drawn_right(10_000) >= 0.9
