"""Mistakes found in other libraries, one test each; the numbers are those of the field's list."""

import copy
import gc
import warnings
import weakref

import matplotlib.pyplot
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from gradcam_nb import (
    KPCA_CAM,
    EigenCAM,
    EigenGradCAM,
    FinerCAM,
    FullGrad,
    GradCAM,
    GradCAMPlusPlus,
    GuidedBackpropReLUModel,
    GuidedGradCAM,
    RefineCAM,
    SegEigenCAM,
    XGradCAM,
    record,
    show_factorization_on_image,
)
from gradcam_nb.core.heatmap import normalize, positive
from gradcam_nb.methods.ablationcam import AblationCAM
from gradcam_nb.methods.scorecam import ScoreCAM
from gradcam_nb.methods.shapleycam import ShapleyCAM
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import TEST, scenes
from gradcam_nb.targets.residual_softmax import ClassifierOutputReST
from gradcam_nb.targets.resolve import each_score


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


def test_9_scorecam_keeps_no_masked_pass(seen):
    """What a layer gives in a masked pass is gone when the next one runs."""
    model, x, target = seen
    given, alive = [], []

    def look(module, args, output):
        alive.append(sum(ref() is not None for ref in given))
        given.append(weakref.ref(output))

    handle = model.layer4.register_forward_hook(look)
    try:
        ScoreCAM(model, "layer4", lambda t: t[:, :32], batch_size=4, progress=False)(x[:1], target[:1])
    finally:
        handle.remove()
    gc.collect()
    assert len(given) > 8 and max(alive) <= 2 and all(ref() is None for ref in given)


def test_8_ablation_cam(seen):
    """A score below zero or at zero turns nothing over; a fill is the channel's own; a share takes each channel once; an error leaves the model."""
    model, x, target = seen
    cam = AblationCAM(model, "layer4", progress=False)
    heat, scores = cam(x, target), model(x)[range(4), target].detach()
    for shift in (-100, *-scores.unique()):
        shifted = cam(x, [lambda output, c=c: output[c] + shift for c in target])
        assert shifted.isfinite().all() and torch.allclose(shifted, heat, atol=1e-3)
    for fill in ("zero", "mean", "min"):
        filled, order = AblationCAM(model, "layer3", fill=fill, progress=False), [2, 0, 3, 1]
        assert torch.allclose(filled(x[order], target[order]), filled(x, target)[order], atol=1e-4)
    for ratio in (0.4, 0.75):
        some = AblationCAM(model, "layer4", ratio=ratio, progress=False)
        run = some.run(x, target)
        (call,) = run.calls(model.layer4)
        assert (some.get_channel_weights(run, call, [run.targets])[0] != 0).sum(1).max() <= round(ratio * 96)
    modules, calls = list(model.named_modules()), []

    def fails(output):
        calls.append(1)
        return output[0] / (len(calls) < 20 or [])

    with pytest.raises(TypeError):
        cam(x, fails)
    assert list(model.named_modules()) == modules and not any(m._forward_hooks or "forward" in m.__dict__ for m in model.modules())


def test_10_plusplus_has_no_constant(seen):
    """However small the gradients, the map is that of the limit; a channel's unit never matters."""
    model, x, target = seen
    maps = [GradCAMPlusPlus(model)(x, [lambda output, c=c: f * output[c] for c in target]) for f in (1e-6, 1e-12, 1e-25)]
    assert all(torch.allclose(m, maps[0], atol=1e-4) for m in maps) and (maps[0].flatten(1).amax(1) == 1).all()
    torch.manual_seed(0)
    a, g, unit = torch.rand(3, 20, 7, 7), torch.randn(3, 20, 7, 7), 10 ** (20 * torch.rand(1, 20, 1, 1) - 10)
    cam = GradCAMPlusPlus(nn.Identity())
    assert torch.allclose(cam.get_cam_image(unit * a, g / unit), cam.get_cam_image(a, g), rtol=1e-4)


def test_11_xgradcam_divides_by_nothing_small():
    """Channels that add up to zero: a weight is a mean of gradients, and a channel has no unit."""
    torch.manual_seed(0)
    a, g = torch.randn(3, 20, 7, 7), torch.randn(3, 20, 7, 7)
    a -= a.mean((2, 3), keepdim=True)
    cam = XGradCAM(nn.Identity())
    assert (cam.get_cam_weights(a, g).abs() <= g.abs().amax((2, 3))).all()
    plain = cam.get_cam_image(a, g)
    unit = 10 ** (20 * torch.rand(1, 20, 1, 1) - 10) * torch.randn(1, 20, 1, 1).sign()
    assert torch.allclose(cam.get_cam_image(unit * a, g / unit), plain, atol=1e-5)
    for factor in (1e-15, 1e15):
        for image in (cam.get_cam_image(factor * a, g), cam.get_cam_image(a, factor * g)):
            assert torch.allclose(normalize(positive(image)), normalize(positive(plain)), atol=1e-5)


@pytest.mark.parametrize("method", [EigenCAM, KPCA_CAM, EigenGradCAM, SegEigenCAM])
def test_12_the_sign_is_not_the_solvers(seen, method, monkeypatch):
    """Neither channels in another order nor eigenvectors of the other sign turn a map over."""
    model, x, target = seen
    r = record(model, ["layer4"], x, lambda output: output[range(4), target].sum())
    a, g = r.activations[model.layer4][0], r.gradients[model.layer4][0]
    plain, order = method(model).get_cam_image(a, g), torch.randperm(a.shape[1], generator=torch.Generator().manual_seed(0))
    assert torch.allclose(method(model).get_cam_image(a[:, order], g[:, order]), plain, atol=1e-3 * plain.abs().max())
    solve, solved = torch.linalg.eigh, []

    def other_sign(matrix):  # the first time only: a second change would undo it
        values, vectors = solve(matrix)
        solved.append(vectors)
        return values, vectors if solved[1:] else -vectors

    monkeypatch.setattr(torch.linalg, "eigh", other_sign)
    assert torch.equal(method(model).get_cam_image(a, g), plain) and solved


def test_13_a_weak_channel_counts_little():
    """Two biases, one on each half of the picture; the score is all of the left one and a little of the right one."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(128, 1, bias=False))
    for p in model.parameters():
        nn.init.zeros_(p)
    nn.init.ones_(model[0].bias)
    strength = model[2].weight.data.view(2, 8, 8)
    strength[0, :, :4], strength[1, :, 4:] = 1, 1e-5
    heat = FullGrad(model)(torch.zeros(1, 1, 8, 8), 0)[0]
    assert (heat[:, :4] == 1).all() and (heat[:, 4:] < 1e-4).all()


class Rectifies(nn.Module):
    """A network with one way of calling a ReLU."""

    def __init__(self, relu):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head, self.relu = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4), relu

    def forward(self, x):
        return self.head(self.relu(self.b(self.relu(self.a(x)))).mean((2, 3)))


RELUS = [F.relu, lambda t: F.relu(t, inplace=True), torch.relu, torch.relu_, lambda t: t.relu(), lambda t: t.relu_(), nn.ReLU(inplace=True)]


def test_15_guided_backpropagation():
    """Nothing is written into the model, its ReLUs stay its own, and a functional ReLU is guided as a module is."""
    model = torchvision.models.resnet18().train()
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    modules, state, x = list(model.named_modules(remove_duplicate=False)), copy.deepcopy(model.state_dict()), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        GuidedBackpropReLUModel(model)(x)
        assert GuidedGradCAM(model)(x).shape == x.shape
    with pytest.raises(ZeroDivisionError):
        GuidedBackpropReLUModel(model)(x, lambda output: 1 / 0)
    assert all(n == m and a is b for (n, a), (m, b) in zip(modules, model.named_modules(remove_duplicate=False), strict=True))
    assert all(m.training for m in model.modules()) and all((p.grad == 7).all() for p in model.parameters()) and not x.requires_grad
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())

    x = torch.randn(2, 3, 12, 12, requires_grad=True)
    guided = GuidedBackpropReLUModel(Rectifies(nn.ReLU()))(x.detach(), 1)
    for relu in RELUS:
        model = Rectifies(relu)
        assert torch.allclose(GuidedBackpropReLUModel(model)(x.detach(), 1), guided, atol=1e-6)
        (plain,) = torch.autograd.grad(model(x)[:, 1].sum(), x)  # outside, a ReLU is a ReLU again
        assert not torch.allclose(plain, guided, atol=0.1 * guided.abs().max())


def test_16_refinecam_multiplies_what_speaks_for_the_score():
    """Where two layers both speak against the score, their product speaks for nothing."""
    model = nn.Sequential(nn.Identity(), nn.Identity(), nn.Flatten(), nn.Linear(64, 1, bias=False))
    nn.init.ones_(model[3].weight)
    x = torch.ones(1, 1, 8, 8)
    x[..., 4:] = -5
    heat = RefineCAM(model, ["0", "1"], base_method=GradCAM)(x, 0)[0]
    assert (heat[:, :4] == 1).all() and not heat[:, 4:].any()


def test_16_finercam_offers_both_weightings(seen):
    """The paper's by default: classes that are compared count alike; by their probabilities if asked."""
    model, x, target = seen
    others = [(c + torch.arange(1, 4)) % 9 for c in target]
    paper = [lambda y, c=c, o=o: y[c] - 0.6 * y[o].mean() for c, o in zip(target, others)]
    weighed = [lambda y, c=c, o=o: y[c] - 0.6 * (y[o].softmax(0) * y[o]).sum() for c, o in zip(target, others)]
    for i, (c, o) in enumerate(zip(target, others)):
        one, cam = x[[i]], GradCAM(model)
        plain, likelier = (FinerCAM(model, comparisons=o, **how)(one, c) for how in ({}, dict(weighting="softmax")))
        assert torch.allclose(plain, cam(one, paper[i]), atol=1e-5) and torch.allclose(likelier, cam(one, weighed[i]), atol=1e-5)
        assert not torch.allclose(plain, likelier, atol=1e-2)


def test_17_a_picture_does_not_change_anothers_rest(seen):
    """The residual softmax is each picture's own: no mean over the batch, whatever else is in it."""
    model, x, target = seen
    targets = [ClassifierOutputReST(int(c)) for c in target]
    together = each_score(targets, model(x))
    for i, one in enumerate(targets):
        alone = each_score([one], model(x[[i]]))
        y = model(x[[i]])[0]
        torch.testing.assert_close(alone[0], y[target[i]] + y.log_softmax(0)[target[i]])
        torch.testing.assert_close(together[[i]], alone, rtol=1e-4, atol=1e-4)
        mixed = each_score([one, targets[0]], torch.cat([model(x[[i]]), 100 * model(x[[0]])]))
        torch.testing.assert_close(mixed[0], alone[0])


# 18, the pyramid's `abs`: test_reshape.py.


def test_19_the_factorization_overlay_changes_nothing(monkeypatch):
    """Its input is as it was; and it draws where matplotlib has no `get_cmap` any more."""
    for place in (matplotlib.cm, matplotlib.pyplot):
        monkeypatch.delattr(place, "get_cmap", raising=False)
    torch.manual_seed(0)
    picture, where = torch.rand(3, 20, 30), torch.rand(4, 20, 30)
    given = picture.clone(), where.clone(), where.numpy().copy()
    for explanations in (where, given[2]):
        shown = show_factorization_on_image(picture, explanations, concept_labels=list("abcd"))
        assert shown.shape == (20, 60, 3) and shown[:, :30].std() > 0
    assert torch.equal(picture, given[0]) and torch.equal(where, given[1]) and (where.numpy() == given[2]).all()


def test_14_shapleycam_takes_several_layers(seen):
    """Each layer has a second derivative of its own: in any order, one run gives what each gives alone."""
    model, x, target = seen
    for layers in (["layer3", "layer4"], ["layer4", "layer3"], ["layer2", "layer3", "layer4"]):
        run = ShapleyCAM(model, layers).run(x, target)
        for name in layers:
            layer, alone = model.get_submodule(name), ShapleyCAM(model, name).run(x, target)
            assert torch.allclose(run.record.gradients[layer][0], alone.record.gradients[layer][0], rtol=1e-4, atol=1e-6)
            assert not torch.allclose(
                alone.record.gradients[layer][0],
                record(model, [name], x, lambda y: sum(y[i, c] for i, c in enumerate(target))).gradients[layer][0],
                rtol=1e-2,
            )
        heats = torch.stack([ShapleyCAM(model, name)(x, target) for name in layers]).mean(0)
        assert torch.allclose(ShapleyCAM(model, layers)(x, target), heats / heats.flatten(1).amax(1)[:, None, None], atol=1e-4)
