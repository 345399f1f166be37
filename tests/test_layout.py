"How a layer lies on the picture, measured: networks made by program, whose layout is known because it was drawn."

import random

import pytest
import torch
from torch import nn

from gradcam_nb import verify_layout, vit_reshape_transform
from gradcam_nb.reshape.readings import readings


class Patches(nn.Module):
    "Patches in a drawn order, with tokens that have no place at a drawn position; mixed a little, as attention does."

    def __init__(self, size, patch, columns, front, middle, behind, first, dim=12):
        super().__init__()
        self.cut, self.norm = nn.Conv2d(3, dim, patch, patch), nn.LayerNorm(dim)
        self.extra = nn.Parameter(torch.randn(1, front + middle + behind, dim))
        self.columns, self.parts, self.first = columns, (front, middle, behind), first
        self.grid = tuple(s // p for s, p in zip(size, patch))

    def patches(self, x):
        cut = self.cut(x)
        return (cut.mT if self.columns else cut).flatten(2).mT

    def forward(self, x):
        patches, (a, b, c) = self.patches(x), self.extra.expand(len(x), -1, -1).split(self.parts, 1)
        half = patches.shape[1] // 2 if self.parts[1] else 0
        tokens = torch.cat([a, patches[:, :half], b, patches[:, half:], c], 1)
        tokens = tokens + 0.2 * tokens.mean(1, keepdim=True)
        return self.norm(tokens.transpose(0, 1) if self.first else tokens).sum()

    def truth(self, layer):
        "The layer's output at its places, cut out by hand."
        tokens, (a, b, _) = layer.transpose(0, 1) if self.first else layer, self.parts
        n = self.grid[0] * self.grid[1]
        half = n // 2 if b else 0
        places = torch.cat([tokens[:, a : a + half], tokens[:, a + half + b : a + b + n]], 1).mT
        return places.unflatten(2, self.grid[::-1]).mT if self.columns else places.unflatten(2, self.grid)


class Maps(nn.Module):
    "A convolution's map, pooled in a drawn direction, channels in a drawn place."

    def __init__(self, channels, stride, last):
        super().__init__()
        self.conv, self.out, self.last = nn.Conv2d(3, channels, 3, stride, 1), nn.Identity(), last

    def forward(self, x):
        maps = self.conv(x).relu()
        return self.out(maps.movedim(1, -1) if self.last else maps).sum()

    def truth(self, layer):
        return layer.movedim(-1, 1) if self.last else layer


def drawn(seed):
    "A network, its layer, a picture."
    rng = random.Random(seed)
    torch.manual_seed(seed)
    if rng.random() < 0.6:
        patch = (rng.choice([4, 6, 8]), rng.choice([4, 6, 8]))
        size = tuple(p * rng.randint(4, 8) for p in patch)
        parts = rng.choice([(0, 0, 0), (1, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 7), (5, 0, 0), (0, 0, 4)])
        return Patches(size, patch, rng.random() < 0.3, *parts, rng.random() < 0.2).eval(), "norm", size
    size = (rng.choice([32, 48, 64]), rng.choice([32, 48, 64]))
    channels = rng.choice([8, 16, 32, 48, 64])
    return Maps(channels, (rng.choice([1, 2, 4]), rng.choice([1, 2, 4])), rng.random() < 0.5).eval(), "out", size


def layer_of(model, name, x):
    kept = []
    handle = model.get_submodule(name).register_forward_hook(lambda module, args, output: kept.append(output))
    with torch.no_grad():
        model(x)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("start", range(0, 200, 25))
def test_no_drawn_layout_is_read_wrongly(start):
    right = 0
    for seed in range(start, start + 25):
        model, name, size = drawn(seed)
        x = torch.randn(2, 3, *size)
        try:
            layout = verify_layout(model, name, x)
        except ValueError as error:
            assert "no agreement" in str(error)
            continue
        layer = layer_of(model, name, x)
        assert torch.equal(layout.reshape_transform(layer), model.truth(layer)), (seed, str(layout))
        right += 1
    assert right >= 0.9 * 25


@pytest.mark.parametrize("front, behind", [(0, 1), (0, 4), (1, 10)])
def test_a_shifted_transform_is_refused(front, behind):
    torch.manual_seed(0)
    model, x = Patches((64, 64), (8, 8), False, front, 0, behind, False).eval(), torch.randn(1, 3, 64, 64)
    with pytest.raises(ValueError, match=f"no agreement.*{behind} behind"):
        verify_layout(model, "norm", x, lambda t: vit_reshape_transform(t, 8, 8))
    by_hand = verify_layout(model, "norm", x, model.truth)
    assert (by_hand.grid, by_hand.agreed) == ((8, 8), 1.0)


def test_the_usual_transform_is_accepted_for_the_usual_order():
    model = Patches((64, 96), (8, 8), False, 1, 0, 0, False).eval()
    assert verify_layout(model, "norm", torch.randn(1, 3, 64, 96), lambda t: vit_reshape_transform(t, 8, 12)).agreed == 1


@pytest.mark.parametrize("size, patch", [((96, 96, 48), (16, 16, 8)), ((12, 160, 160), (3, 16, 16)), ((32, 96, 96), (4, 8, 8))])
def test_volumes(size, patch):
    torch.manual_seed(0)
    cut = nn.Conv3d(1, 16, patch, patch)
    model, x = nn.Sequential(cut, nn.Flatten(2)).eval(), torch.randn(1, 1, *size)
    tokens = nn.Sequential(*model, Turned()).eval()
    layout = verify_layout(tokens, "2", x)
    assert torch.equal(layout.reshape_transform(tokens(x)), cut(x))


class Turned(nn.Module):
    def forward(self, x):
        return x.mT


def test_what_is_not_a_batch_of_floats():
    model = Patches((32, 32), (8, 8), False, 1, 0, 0, False).eval()

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, picture, scale):
            return self.inner(picture.float() / 255 * scale)

    layout = verify_layout(
        Whole(), "inner.norm", dict(picture=torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), scale=torch.tensor(2.0))
    )
    assert layout.grid == (4, 4) and "1 in front" in layout.name


def test_the_model_and_the_random_state_are_as_they_were():
    model, x = Patches((32, 32), (8, 8), False, 1, 0, 0, False), torch.randn(1, 3, 32, 32)
    kept, state = x.clone(), torch.get_rng_state()
    verify_layout(model, "norm", x)
    assert model.training and torch.equal(x, kept) and torch.equal(state, torch.get_rng_state())
    assert not model.norm._forward_hooks


@pytest.mark.parametrize(
    "shape, size, grid",
    [((1, 197, 8), (224, 224), (14, 14)), ((1, 56, 56, 96), (224, 224), (56, 56)), ((1, 8, 4, 7, 7), (8, 56, 56), (4, 7, 7))],
)
def test_the_likely_reading_comes_first_and_none_comes_twice(shape, size, grid):
    found = readings(shape, size)
    assert found[0].grid == grid and len({one.name for one in found}) == len(found)


def test_no_places():
    with pytest.raises(ValueError, match="no agreement.*no places"):
        verify_layout(nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), "1", torch.randn(1, 3, 4, 4))
