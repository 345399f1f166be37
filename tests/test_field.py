"""Mistakes found in other libraries, one test each; the numbers are those of the field's list."""
import copy
import gc
import warnings

import pytest
import torch
from torch import nn

from gradcam_nb import GradCAM, record
from gradcam_nb.core.heatmap import normalize
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import TEST, scenes


@pytest.fixture(scope="module")
def seen():
    """A network, four scenes and a class that is on each."""
    batch = scenes(4, TEST + 2000)
    return load("scenes-cnn"), batch.images * 2 - 1, batch.labels.argmax(1)


class Branches(nn.Module):
    """A shared module, a branch without gradient, an in-place layer behind each."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.dead, self.act = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1), nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h = self.act(self.a(x))
        self.dead(h)
        return self.head(self.act(self.b(h)).mean((2, 3)))


def test_1_what_is_kept_is_not_overwritten():
    torch.manual_seed(0)
    model, x = Branches(), torch.randn(2, 3, 12, 12)
    plain = model.a(x).detach()
    assert (plain < 0).any() and torch.equal(record(model, ["a"], x, lambda y: y.sum()).activations[model.a][0], plain)


def test_2_gradients_belong_to_their_layer():
    torch.manual_seed(0)
    model, x = Branches(), torch.randn(2, 3, 12, 12)
    score = lambda y: y[:, 1].sum()  # noqa: E731
    alone = {name: record(model, [name], x, score) for name in ("a", "b", "dead", "act")}
    r = record(model, ["act", "b", "dead", "a"], x, score)  # out of order
    for name, one in alone.items():
        layer = model.get_submodule(name)
        assert all(torch.allclose(g, h) for g, h in zip(r.gradients[layer], one.gradients[layer]))
        assert len(r.gradients[layer]) == (2 if name == "act" else 1)
    assert not r.gradients[model.dead][0].any()


def test_3_a_short_list_of_targets_is_an_error(seen):
    model, x, _ = seen
    with pytest.raises(ValueError, match="got 2 for 4 pictures"):
        GradCAM(model)(x, [1, 2])


def test_4_augmentation_explains_one_class(seen):
    """Where a changed copy has another top class, the plain picture's is explained all the same."""
    model, x, _ = seen
    negate = (lambda t: -t, lambda m: m)
    top = model(x).argmax(1)
    assert (model(-x).argmax(1) != top).any()
    cam = GradCAM(model)
    assert torch.allclose(cam(x, aug_smooth=[negate]), cam(x, top, aug_smooth=[negate]), atol=1e-5)


@pytest.mark.parametrize("fails", [False, True])
def test_5_the_model_is_left_as_it_was(seen, fails):
    model, x, target = seen
    model = copy.deepcopy(model).train()
    model.bn1.eval()
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    flags, state = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    if fails:
        with pytest.raises(ZeroDivisionError):
            GradCAM(model)(x, lambda y: 1 / 0)
    else:
        GradCAM(model)(x, target, aug_smooth=True)
    assert [m.training for m in model.modules()] == flags
    assert all((p.grad == 7).all() and p.requires_grad for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values()))
    assert not any(m._forward_hooks or "forward" in m.__dict__ for m in model.modules())


def test_6_errors_are_not_swallowed(seen, capsys):
    model, x, _ = seen
    with pytest.raises(IndexError), GradCAM(model) as cam:
        [][cam is None]
    with pytest.raises(ValueError):
        GradCAM(model, "none")
    gc.collect()
    assert capsys.readouterr().err == ""


def test_7_a_positive_constant_map_is_not_blank():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(128, 1, bias=False))
    for p in model.parameters():
        nn.init.ones_(p)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.allclose(GradCAM(model, "0")(torch.ones(1, 3, 8, 8), 0), torch.ones(1, 8, 8))
    assert torch.equal(normalize(torch.zeros(1, 2, 2)), torch.zeros(1, 2, 2))
