"""Reshape transforms: each against a loop by hand, what is picked from two shapes, and models with nothing told."""

from functools import partial
from itertools import product

import pytest
import torch
import torchvision
from torch import nn

from gradcam_nb import GradCAM, HiResCAM, channels_last_reshape_transform, suggest_layer, vit_reshape_transform
from gradcam_nb.reshape.fpn import fpn_reshape_transform, is_pyramid
from gradcam_nb.reshape.pick import as_it_is, pick_reshape, why_no_reshape
from gradcam_nb.reshape.sequence_first import sequence_first_reshape_transform
from gradcam_nb.reshape.signal import signal_reshape_transform, signal_tokens
from gradcam_nb.reshape.swin import swin_reshape_transform
from gradcam_nb.reshape.vit import token_grid
from gradcam_nb.reshape.volume_tokens import volume_token_grid, volume_tokens_reshape_transform

B, C, GRID = 2, 3, (2, 4, 5)  # depth, rows, columns


def numbered(*spatial):
    """`B × C × spatial`, each number another."""
    return torch.arange(B * C * torch.Size(spatial).numel(), dtype=torch.float32).reshape(B, C, *spatial)


def written(laid, prefix=0, sequence_first=False):
    """A grid as a list of tokens, place by place in a loop, with tokens of -1 in front."""
    tokens = [torch.full((B, C), -1.0)] * prefix + [
        laid[(slice(None), slice(None), *place)] for place in product(*map(range, laid.shape[2:]))
    ]
    return torch.stack(tokens, 0 if sequence_first else 1)


def as_channels_last(laid):
    out = torch.empty(B, *laid.shape[2:], C)
    for place in product(*map(range, laid.shape[2:])):
        out[(slice(None), *place)] = laid[(slice(None), slice(None), *place)]
    return out


signal, picture, volume = numbered(5), numbered(4, 5), numbered(*GRID)
TRANSFORMS = {  # what a layer gives, the transform, what it must become
    "as it is": (picture, as_it_is, picture),
    "channels last 1-D": (as_channels_last(signal), channels_last_reshape_transform, signal),
    "channels last 2-D": (as_channels_last(picture), channels_last_reshape_transform, picture),
    "channels last 3-D": (as_channels_last(volume), channels_last_reshape_transform, volume),
    "vit": (written(picture), partial(vit_reshape_transform, height=4, width=5), picture),
    "vit, class token": (written(picture, 1), partial(vit_reshape_transform, height=4, width=5), picture),
    "vit, class token and registers": (written(picture, 5), partial(vit_reshape_transform, height=4, width=5), picture),
    "swin grid": (as_channels_last(picture), swin_reshape_transform, picture),
    "swin tokens": (written(picture), partial(swin_reshape_transform, height=4, width=5), picture),
    "swin tokens, height": (written(picture), partial(swin_reshape_transform, height=4), picture),
    "swin tokens, width": (written(picture), partial(swin_reshape_transform, width=5), picture),
    "swin tokens, square": (written(picture[..., :4]), swin_reshape_transform, picture[..., :4]),
    "sequence first": (written(picture, 1, True), partial(sequence_first_reshape_transform, height=4, width=5), picture),
    "volume": (written(volume), partial(volume_tokens_reshape_transform, grid=GRID), volume),
    "volume, class token": (written(volume, 1), partial(volume_tokens_reshape_transform, grid=GRID), volume),
    "signal": (written(signal), signal_reshape_transform, signal),
    "signal, class token": (written(signal, 1), partial(signal_reshape_transform, length=5), signal),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_is_the_loop_by_hand(name):
    given, transform, expected = TRANSFORMS[name]
    assert torch.equal(transform(given), expected)
    assert torch.equal(transform(given.half()), expected.half())
    assert torch.equal(transform(given.long()), expected.long())
    assert transform(given).untyped_storage().data_ptr() == given.untyped_storage().data_ptr(), "numbers were copied"


@pytest.mark.parametrize("name", TRANSFORMS)
def test_gradients_come_back_to_their_place(name):
    given, transform, expected = TRANSFORMS[name]
    leaf = given.clone().requires_grad_()
    factor = torch.randn(expected.shape)
    (transform(leaf) * factor).sum().backward()
    assert torch.equal(transform(leaf.grad), factor)
    assert torch.equal(leaf.grad != 0, given >= 0), "a token without a place has a gradient"


ERRORS = {
    "tokens": (partial(vit_reshape_transform, height=5, width=5), (2, 21, 3), "got 21 tokens, which are no grid of 5 × 5"),
    "a grid to vit": (vit_reshape_transform, (2, 3, 4, 5), "B × N × C"),
    "swin, class token": (swin_reshape_transform, (2, 17, 3), "got 17 tokens, which are no grid of 4 × 4"),
    "swin, tokens of no square": (swin_reshape_transform, (2, 12, 3), "got 12 tokens, which are no grid of 3 × 3"),
    "swin, two numbers": (swin_reshape_transform, (2, 17), r"\(2, 17\)"),
    "sequence first, a grid": (sequence_first_reshape_transform, (2, 3, 4, 5), "N × B × C"),
    "volume": (partial(volume_tokens_reshape_transform, grid=(2, 3, 4)), (2, 23, 3), "grid: got 23 tokens, which are no grid of 2 × 3 × 4"),
    "volume, two numbers": (partial(volume_tokens_reshape_transform, grid=(2, 3, 4)), (2, 23), "B × N × C"),
    "signal": (partial(signal_reshape_transform, length=6), (2, 5, 3), "got 6 for 5 tokens"),
    "signal, none": (partial(signal_reshape_transform, length=0), (2, 5, 3), "got 0 for 5 tokens"),
    "channels last": (channels_last_reshape_transform, (2, 3), r"\(2, 3\)"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_was_given(name):
    transform, shape, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        transform(torch.empty(shape))


# Feature pyramids


def levels(*sizes):
    generator = torch.Generator().manual_seed(0)
    return {f"level {i}": torch.randn(2, 2 + i, *size, generator=generator) for i, size in enumerate(sizes)}


def between(row, n):
    """A row of numbers, drawn out to `n`: linear between the centres of the places, the ends held."""
    out = []
    for i in range(n):
        at = min(max((i + 0.5) * len(row) / n - 0.5, 0), len(row) - 1)
        low = min(int(at), len(row) - 2) if len(row) > 1 else 0
        out.append(row[low] if len(row) == 1 else row[low] * (1 - (at - low)) + row[low + 1] * (at - low))
    return torch.stack(out)


@pytest.mark.parametrize("sizes", [[(8,), (4,), (3,)], [(6, 9), (3, 5), (1, 1)], [(3, 5), (6, 9)], [(4, 6, 6), (2, 3, 3)]], ids=str)
def test_a_pyramid_is_the_loop_by_hand(sizes):
    pyramid, finest = levels(*sizes), max(sizes)
    expected = []
    for level in pyramid.values():
        for axis, n in enumerate(finest):
            level = between(level.movedim(2 + axis, 0), n).movedim(0, 2 + axis)
        expected.append(level)
    for given in (pyramid, list(pyramid.values()), tuple(pyramid.values())):
        torch.testing.assert_close(fpn_reshape_transform(given), torch.cat(expected, 1))
        believed = not (isinstance(given, tuple) and len(finest) == 1)  # a recurrent layer gives such a tuple
        assert is_pyramid(given) == is_pyramid(given, len(finest)) == believed
        assert not is_pyramid(given, len(finest) % 3 + 1)


def test_a_pyramid_keeps_its_signs_and_its_finest_size():
    """Other libraries take `abs()` of activations and gradients, at the coarsest size."""
    pyramid = {"0": torch.full((1, 1, 4, 4), -1.0), "pool": torch.tensor([[[[2.0, -2.0], [-2.0, 2.0]]]])}
    laid = fpn_reshape_transform(pyramid)
    assert laid.shape == (1, 2, 4, 4)
    assert (laid[:, 0] == -1).all()
    assert laid[0, 1, 0, 0] == 2
    assert laid[0, 1, 0, 3] == -2
    assert laid[:, 1].sum().abs() < 1e-5
    assert torch.equal(fpn_reshape_transform({k: -v for k, v in pyramid.items()}), -laid)


class Pyramid(nn.Module):
    """A backbone with three levels, as a detector's; a head that hears all of them, the coarsest with a minus."""

    def __init__(self, kind=dict):
        super().__init__()
        self.backbone, self.head, self.kind = Backbone(kind), nn.ModuleList(nn.Linear(c, 4) for c in (4, 6, 8)), kind

    def forward(self, x):
        found = self.backbone(x)
        found = list(found.values()) if isinstance(found, dict) else found
        return sum(sign * head(level.mean((2, 3))) for sign, head, level in zip((1, 1, -1), self.head, found))


class Backbone(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.stages, self.kind = nn.ModuleList(nn.Conv2d(i, o, 3, 2, 1) for i, o in ((3, 4), (4, 6), (6, 8))), kind

    def forward(self, x):
        found = {}
        for i, stage in enumerate(self.stages):
            found[str(i)] = x = stage(x).relu()
        return found if self.kind is dict else self.kind(found.values())


@pytest.mark.parametrize("kind", [dict, list, tuple])
def test_a_layer_that_gives_a_pyramid_is_laid_by_itself(kind):
    """Nothing told but the layer; and it is Grad-CAM by hand, with signs."""
    torch.manual_seed(0)
    model, x = Pyramid(kind).eval(), torch.randn(2, 3, 32, 48)
    heat = GradCAM(model, "backbone")(x, 1)
    found = model.backbone(x)
    levels_found = found.values() if kind is dict else found
    found = [level.detach().requires_grad_() for level in levels_found]  # what the layer gives, not how it came about
    gradients = torch.autograd.grad(model_score(model, found), found)
    laid, weights = fpn_reshape_transform(found), torch.cat([g.mean((2, 3)) for g in gradients], 1)
    small = (weights[:, :, None, None] * laid).sum(1, keepdim=True).relu().detach()
    by_hand = nn.functional.interpolate(small, size=(32, 48), mode="bilinear")[:, 0]
    torch.testing.assert_close(heat, by_hand / by_hand.amax((1, 2), keepdim=True), rtol=1e-4, atol=1e-5)
    assert (weights < 0).any()


def model_score(model, found):
    return sum(sign * head(level.mean((2, 3))) for sign, head, level in zip((1, 1, -1), model.head, found))[:, 1].sum()


def test_what_is_no_pyramid():
    r = torch.randn
    states = (r(2, 50, 8), (r(2, 8), r(2, 8)))
    windows = [r(2, 4, 8, 8), r(8, 4, 4, 4)]
    crossed = [r(2, 4, 8, 4), r(2, 4, 4, 8)]
    for output in (
        r(2, 4, 8, 8),
        [r(2, 4, 8, 8)],
        [r(2, 4, 8, 8)] * 2,
        states,
        windows,
        crossed,
        (r(2, 4, 8, 8), None),
        {},
        [],
        None,
        "ab",
        dict(logits=r(2, 5), aux=r(2, 7)),
    ):
        assert not is_pyramid(output)


# What is picked from two shapes


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("patch", [4, 8, 14, 16, 32])
@pytest.mark.parametrize("rows, columns", [(14, 14), (16, 12), (7, 7), (10, 15), (24, 24), (9, 32)])
def test_patches_that_divide_the_picture(rows, columns, patch, prefix):
    assert token_grid(prefix + rows * columns, (rows * patch, columns * patch)) == (prefix, rows, columns)


@pytest.mark.parametrize("size", [(800, 1066), (800, 1333), (427, 640), (480, 640), (375, 500), (333, 800), (225, 225)], ids=str)
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_convolutions_that_halve_and_round_up(size, stride):
    """DETR's backbone, SegFormer's stages: no token without a place."""
    grid = tuple(-(-n // stride) for n in size)
    assert token_grid(grid[0] * grid[1], size) == (0, *grid)


@pytest.mark.parametrize("size", [(230, 230), (225, 300), (500, 333)], ids=str)
@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize("prefix", [0, 1])
def test_patches_that_cut_off_what_is_left_over(size, patch, prefix):
    grid = tuple(n // patch for n in size)
    assert token_grid(prefix + grid[0] * grid[1], size) == (prefix, *grid)


@pytest.mark.parametrize(
    "tokens, size",
    [
        (77, (224, 224)),
        (77, (336, 336)),
        (64, (800, 1333)),
        (100, (800, 800)),
        (100, (800, 1066)),
        (100, (800, 1333)),
        (100, (640, 640)),
        (100, (512, 512)),
        (300, (800, 1333)),
        (1000, (224, 224)),
        (1, (224, 224)),
        (2, (224, 224)),
    ],
)
def test_lists_that_are_no_pictures(tokens, size):
    """Words of a text, queries of a detector, classes."""
    assert token_grid(tokens, size) is None
    assert pick_reshape((2, tokens, 64), size, 2) is None


def test_with_pictures_of_any_size_a_grid_is_never_larger_than_what_was_asked():
    for tokens, size in product(range(1, 200), [(32, 32), (64, 96), (75, 150)]):
        if grid := token_grid(tokens, size):
            prefix, rows, columns = grid
            assert prefix + rows * columns == tokens, (tokens, size)
            assert 0 <= prefix <= 9, (tokens, size)
            assert 0 < rows <= size[0], (tokens, size)
            assert 0 < columns <= size[1], (tokens, size)


PICKED = [  # shape, size, pictures -> the transform's name, the grid
    ((2, 64, 7, 7), (224, 224), 2, "as_it_is", (7, 7)),
    ((2, 64, 3, 5), (75, 150), 2, "as_it_is", (3, 5)),
    ((2, 7, 7, 64), (224, 224), 2, "channels_last_reshape_transform", (7, 7)),
    ((2, 16, 24, 64), (64, 96), None, "channels_last_reshape_transform", (16, 24)),
    ((2, 197, 64), (224, 224), 2, "vit_reshape_transform", (14, 14)),
    ((2, 201, 64), (224, 224), None, "vit_reshape_transform", (14, 14)),
    ((2, 49, 64), (224, 224), 2, "vit_reshape_transform", (7, 7)),
    ((197, 2, 64), (224, 224), 2, "sequence_first_reshape_transform", (14, 14)),
    ((850, 3, 64), (800, 1066), 3, "sequence_first_reshape_transform", (25, 34)),
    ((197, 1, 64), (224, 224), None, "sequence_first_reshape_transform", (14, 14)),
    ((2, 4, 8, 7, 7), (16, 112, 112), 2, "as_it_is", (8, 7, 7)),
    ((2, 8, 7, 7, 64), (16, 224, 224), 2, "channels_last_reshape_transform", (8, 7, 7)),
    ((2, 393, 64), (16, 224, 224), 2, "volume_tokens_reshape_transform", (8, 7, 7)),
    ((2, 1568, 64), (16, 224, 224), None, "volume_tokens_reshape_transform", (8, 14, 14)),
    ((2, 216, 64), (96, 96, 96), None, "volume_tokens_reshape_transform", (6, 6, 6)),
    ((2, 64, 250), (1000,), 2, "as_it_is", (250,)),
    ((2, 101, 64), (1000,), 2, "signal_reshape_transform", (100,)),
    ((2, 1500, 384), (3000,), 2, "signal_reshape_transform", (1500,)),
    ((2, 98, 512), (100,), 2, "channels_last_reshape_transform", (98,)),
]


@pytest.mark.parametrize("shape, size, batch, name, grid", PICKED, ids=str)
def test_picked(shape, size, batch, name, grid):
    """The right one; and it works for other batches, on `meta`, and moves numbers only."""
    transform = pick_reshape(shape, size, batch)
    assert getattr(transform, "func", transform).__name__ == name
    where = 1 if name.startswith("sequence_first") else 0
    channels = transform(torch.empty(shape, device="meta")).shape[1]
    for pictures in (1, 2, 5):
        other = [*shape]
        other[where] = pictures
        assert transform(torch.empty(other, device="meta")).shape == (pictures, channels, *grid)
    numbers = torch.arange(torch.Size(shape).numel()).reshape(shape)
    laid = transform(numbers)
    assert laid.dtype == torch.int64
    assert len(laid.unique()) == laid.numel()


NONE = [
    ((2, 3, 197, 64), (224, 224), None),
    ((2, 1000), (224, 224), 2),
    ((), (224, 224), 2),
    ((2,), (224, 224), 2),
    ((128, 49, 96), (224, 224), 2),  # windows
    ((6, 64, 7, 7), (224, 224), 2),  # heads, as pictures
    ((100, 2, 256), (800, 1066), 2),  # queries
    ((850, 2, 256), (800, 1066), None),
    ((2, 300, 250), (100,), 2),
    ((2, 77, 64), (16, 224, 224), 2),
]


@pytest.mark.parametrize("shape, size, batch", NONE, ids=str)
def test_none_is_picked_and_the_reason_is_said(shape, size, batch):
    assert pick_reshape(shape, size, batch) is None
    why = why_no_reshape(shape, size, batch)
    assert why.startswith(f"shape {shape} has no places on an input of {' × '.join(map(str, size))}: ")
    assert "\n" not in why
    assert "_transform" in why or "as_it_is" in why or "number of pictures" in why


def test_as_many_pictures_as_tokens_are_pictures_first():
    assert pick_reshape((49, 49, 8), (224, 224), 49).func is vit_reshape_transform


def test_convolutions_of_signals_are_not_taken_for_tokens():
    """Every length that a padded or unpadded network of common widths gives."""
    for length, channels in product(
        (96, 100, 128, 187, 250, 1000, 1024, 3000, 16000),
        (1, 2, 4, 6, 8, 10, 12, 16, 20, 24, 30, 32, 40, 48, 50, 60, 64, 96, 100, 120, 128, 192, 200, 256, 320, 512, 768, 1024),
    ):
        halved = {length >> k for k in range(6)} | {-(-length >> k) for k in range(6)}
        for n in halved | {length - 4, (length - 4) // 2, (length - 12) // 4}:
            assert signal_tokens((2, channels, n), length) is None, (channels, n, length)
            assert pick_reshape((2, channels, n), (length,)) is as_it_is, (channels, n, length)


@pytest.mark.parametrize("length, patch", [(1000, 10), (1024, 16), (512, 8), (3000, 20)])
def test_tokens_of_signals_with_a_class_token(length, patch):
    n = length // patch
    assert signal_tokens((2, n + 1, 64), length) == (n if n % 2 == 0 else None)


def test_volume_grids_of_common_networks():
    film = (16, 224, 224)
    assert [volume_token_grid(1 + 8 * n * n, film) for n in (56, 28, 14, 7)] == [(1, 8, n, n) for n in (56, 28, 14, 7)]  # MViT
    assert volume_token_grid(8 * 14 * 14, film) == (0, 8, 14, 14)  # VideoMAE
    assert volume_token_grid(1 + 16 * 14 * 14, (32, 224, 224)) == (1, 16, 14, 14)  # ViViT
    for side, patch in product((64, 96, 128, 160), (8, 16, 32)):
        n = side // patch
        if n > 1:
            assert volume_token_grid(n**3, (side,) * 3) == (0, n, n, n), (side, patch)  # UNETR


# Models, nothing told


def explained(model, x, target=None, size=None):
    """The layer that was taken, with a map that is not the same everywhere for each picture."""
    torch.manual_seed(0)
    model = model().eval()
    cam = GradCAM(model)
    heat = cam(x, target)
    size = size or tuple((x["pixel_values"] if isinstance(x, dict) else x).shape[2:])
    assert heat.shape == (2, *size)
    assert (heat.flatten(1).amax(1) == 1).all()
    assert (heat.flatten(1).amin(1) < 1).all()
    return suggest_layer(model, x)


def name(layer):
    return getattr(layer.reshape, "func", layer.reshape).__name__.removesuffix("_reshape_transform")


class SequenceFirst(nn.Module):
    """Patches, two encoder layers with the sequence first and a class token, its answer."""

    def __init__(self):
        super().__init__()
        self.cut, self.token = nn.Conv2d(3, 16, 8, 8), nn.Parameter(torch.randn(1, 1, 16))
        self.encoder = nn.Sequential(*[nn.TransformerEncoderLayer(16, 2, 32, dropout=0) for _ in range(2)])
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        tokens = self.cut(x).flatten(2).permute(2, 0, 1)
        return self.head(self.encoder(torch.cat([self.token.expand(-1, len(x), -1), tokens]))[0])


def test_sequence_first():
    layer = explained(SequenceFirst, torch.randn(2, 3, 32, 48), target=1)
    assert (layer.name, name(layer), layer.grid) == ("encoder.0", "sequence_first", (4, 6))


def mvit(num_classes):
    """mvit_v1_b in small: it cannot be told another size."""
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    def block(heads, c, out, stride_q, stride_kv):
        return MSBlockConfig(heads, c, out, kernel_q=[3, 3, 3], kernel_kv=[3, 3, 3], stride_q=stride_q, stride_kv=stride_kv)

    blocks = [
        block(1, 16, 32, [1, 1, 1], [1, 4, 4]),
        block(2, 32, 64, [1, 2, 2], [1, 2, 2]),
        block(4, 64, 64, [1, 2, 2], [1, 1, 1]),
        block(4, 64, 64, [1, 1, 1], [1, 1, 1]),
    ]
    return MViT(
        (64, 64),
        8,
        blocks,
        residual_pool=False,
        residual_with_cls_embed=False,
        rel_pos_embed=False,
        proj_after_attn=False,
        num_classes=num_classes,
    )


VIDEO = {
    "r3d_18": (torchvision.models.video.r3d_18, "as_it_is", (1, 4, 4)),
    "mvit": (mvit, "volume_tokens", (4, 4, 4)),
    "swin3d_t": (torchvision.models.video.swin3d_t, "channels_last", (4, 2, 2)),
}


@pytest.mark.parametrize("which", VIDEO)
def test_videos(which):
    make, transform, grid = VIDEO[which]
    layer = explained(lambda: make(num_classes=5), torch.randn(2, 3, 8, 64, 64))
    assert (name(layer), layer.grid) == (transform, grid)


@pytest.mark.slow
def test_mvit_v1_b():
    """The whole network, a clip of its own size: 16 frames of 224 × 224."""
    torch.manual_seed(0)
    model, clip = torchvision.models.video.mvit_v1_b(num_classes=5).eval(), torch.randn(1, 3, 16, 224, 224)
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)):
            torch.nn.init.normal_(norm.weight)  # else all tokens are equally long
    cam = HiResCAM(model)
    heat = cam(clip, 1)
    assert heat.shape == (1, 16, 224, 224)
    assert heat.max() == 1
    assert heat.std() > 0.01


@pytest.fixture(scope="module")
def hf():
    return pytest.importorskip("transformers")


SMALL = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64)
SQUARE, WIDE = (
    torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
    torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)),
)


@pytest.mark.parametrize("as_dict", [False, True])
def test_hugging_face_vit(hf, as_dict):
    config = hf.ViTConfig(**SMALL, image_size=64, patch_size=8, num_labels=5)
    layer = explained(lambda: hf.ViTForImageClassification(config), dict(pixel_values=SQUARE) if as_dict else SQUARE)
    assert (name(layer), layer.grid, layer.shape) == ("vit", (8, 8), (1, 65, 32))


def test_hugging_face_dino_with_registers(hf):
    config = hf.Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=64, patch_size=8, num_labels=5
    )
    layer = explained(lambda: hf.Dinov2WithRegistersForImageClassification(config), SQUARE)
    assert (name(layer), layer.grid, layer.shape) == ("vit", (8, 8), (1, 69, 32))


def test_hugging_face_swin(hf):
    config = hf.SwinConfig(image_size=64, patch_size=4, embed_dim=16, depths=[1, 1, 2], num_heads=[1, 2, 4], window_size=4, num_labels=5)
    layer = explained(lambda: hf.SwinForImageClassification(config), dict(pixel_values=SQUARE))
    assert (name(layer), layer.grid, layer.shape) == ("vit", (4, 4), (1, 16, 64))
    model = hf.SwinForImageClassification(config).eval()
    told, found = (GradCAM(model, model.swin.layernorm, transform)(SQUARE, 1) for transform in (swin_reshape_transform, None))
    assert torch.equal(told, found)


def test_hugging_face_segformer(hf):
    config = hf.SegformerConfig(hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=16, num_attention_heads=[1, 1, 2, 2], num_labels=5)
    assert explained(lambda: hf.SegformerForImageClassification(config), WIDE).grid == (2, 3)
    model = hf.SegformerForSemanticSegmentation(config).eval()
    assert suggest_layer(model, WIDE).grid == (2, 3)
    told, found = (
        GradCAM(model, "segformer.stages.3", transform)(WIDE, lambda output: output["logits"][2].square().sum())
        for transform in (as_it_is, None)
    )
    assert torch.equal(told, found)
    assert told.amax() == 1


def test_hugging_face_clip_vision(hf):
    config, text = hf.CLIPVisionConfig(**SMALL, image_size=64, patch_size=8, projection_dim=16), torch.randn(16)
    layer = explained(
        lambda: hf.CLIPVisionModelWithProjection(config), dict(pixel_values=SQUARE), target=lambda output: output["image_embeds"] @ text
    )
    assert (name(layer), layer.grid, layer.shape) == ("vit", (8, 8), (1, 65, 32))


def test_hugging_face_detr(hf):
    """The grid of its encoder is that of a convolutional network, which rounds up: 200 × 266 pixels are 7 × 9 places."""
    backbone = hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    ours = dict(
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_queries=20,
        num_labels=5,
    )
    config = hf.DetrConfig(use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, **ours)
    x = dict(pixel_values=torch.randn(2, 3, 200, 266, generator=torch.Generator().manual_seed(0)))
    layer = explained(lambda: hf.DetrForObjectDetection(config), x, target=lambda output: output["logits"][3, 1])
    assert (name(layer), layer.grid, layer.shape) == ("vit", (7, 9), (1, 63, 32))
