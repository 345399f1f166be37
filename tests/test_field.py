"""Mistakes that are easily made in this field, and have been made: a test for each."""

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
from traces import assert_untouched, traces

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
        self.a, self.b, self.dead = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h = self.act(self.a(x))
        self.dead(h)
        return self.head(self.act(self.b(h)).mean((2, 3)))


def test_what_a_layer_gave_is_not_overwritten_by_an_in_place_layer_behind_it():
    torch.manual_seed(0)
    model, x = Branches(), torch.randn(2, 3, 12, 12)
    plain = model.a(x).detach()
    assert (plain < 0).any(), "the ReLU would change nothing"
    kept = record(model, ["a"], x, lambda y: y.sum()).activations[model.a][0]
    assert torch.equal(kept, plain)


def test_gradients_belong_to_their_layer_in_whatever_order_layers_are_asked():
    torch.manual_seed(0)
    model, x = Branches(), torch.randn(2, 3, 12, 12)

    def score(y):
        return y[:, 1].sum()

    r = record(model, ["act", "b", "dead", "a"], x, score)  # out of order
    for name, calls in (("a", 1), ("b", 1), ("dead", 1), ("act", 2)):
        layer = model.get_submodule(name)
        alone = record(model, [name], x, score).gradients[layer]
        assert len(r.gradients[layer]) == len(alone) == calls, name
        for call, (together, one) in enumerate(zip(r.gradients[layer], alone)):
            assert torch.allclose(together, one), f"{name}, call {call}"
    assert not r.gradients[model.dead][0].any(), "nothing depends on the dead branch"


def test_a_short_list_of_targets_is_an_error(seen):
    model, x, _ = seen
    with pytest.raises(ValueError, match="got 2 for 4 pictures"):
        GradCAM(model)(x, [1, 2])


def test_augmentation_explains_the_plain_pictures_class(seen):
    """Where a changed copy has another top class, the plain picture's is explained all the same."""
    model, x, _ = seen
    negate = (lambda t: -t, lambda m: m)
    top = model(x).argmax(1)
    assert (model(-x).argmax(1) != top).any(), "no copy has another top class"
    cam = GradCAM(model)
    assert torch.allclose(cam(x, aug_smooth=[negate]), cam(x, top, aug_smooth=[negate]), atol=1e-5)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was_also_by_an_exception(seen, fails):
    model, x, target = seen
    model = copy.deepcopy(model).train()
    model.bn1.eval()
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    before = traces(model)
    if fails:
        with pytest.raises(ZeroDivisionError):
            GradCAM(model)(x, lambda y: 1 / 0)
    else:
        GradCAM(model)(x, target, aug_smooth=True)
    assert_untouched(model, before)


def test_errors_are_not_swallowed(seen, capsys):
    model, x, _ = seen
    with pytest.raises(IndexError), GradCAM(model) as cam:
        [][cam is None]
    with pytest.raises(ValueError):
        GradCAM(model, "none")
    gc.collect()
    assert capsys.readouterr().err == ""


def test_a_positive_constant_map_is_not_blank():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(128, 1, bias=False))
    for p in model.parameters():
        nn.init.ones_(p)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.allclose(GradCAM(model, "0")(torch.ones(1, 3, 8, 8), 0), torch.ones(1, 8, 8))
    assert torch.equal(normalize(torch.zeros(1, 2, 2)), torch.zeros(1, 2, 2))


def test_scorecam_keeps_no_masked_pass(seen):
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
    assert len(given) > 8
    assert max(alive) <= 2, "passes are kept while others run"
    assert not any(ref() is not None for ref in given), "a pass outlives the call"


def times(c, factor=1.0, shift=0.0):
    """A class's score in another unit."""
    return lambda output: factor * output[c] + shift


def test_ablationcam_is_not_turned_over_by_a_score_below_or_at_zero(seen):
    model, x, target = seen
    cam = AblationCAM(model, "layer4", progress=False)
    heat, scores = cam(x, target), model(x)[range(4), target].detach()
    for shift in (-100, *(-scores.unique()).tolist()):
        shifted = cam(x, [times(c, shift=shift) for c in target])
        assert shifted.isfinite().all(), f"score and {shift}"
        assert torch.allclose(shifted, heat, atol=1e-3), f"score and {shift}"


@pytest.mark.parametrize("fill", ["zero", "mean", "min"])
def test_ablationcam_fills_each_picture_with_its_own_value(seen, fill):
    model, x, target = seen
    cam, order = AblationCAM(model, "layer3", fill=fill, progress=False), [2, 0, 3, 1]
    assert torch.allclose(cam(x[order], target[order]), cam(x, target)[order], atol=1e-4)


@pytest.mark.parametrize("ratio", [0.4, 0.75])
def test_ablationcam_with_a_share_of_the_channels_asks_no_more_of_them(seen, ratio):
    model, x, target = seen
    cam = AblationCAM(model, "layer4", ratio=ratio, progress=False)
    run = cam.run(x, target)
    (call,) = run.calls(model.layer4)
    weights = cam.get_channel_weights(run, call, [run.targets])[0]
    assert 0 < (weights != 0).sum(1).max() <= round(ratio * 96)


def test_ablationcam_leaves_the_model_by_an_exception_in_the_middle(seen):
    model, x, _ = seen
    before, calls = traces(model), []

    def fails(output):
        calls.append(1)
        if len(calls) == 20:
            raise ZeroDivisionError
        return output[0]

    with pytest.raises(ZeroDivisionError):
        AblationCAM(model, "layer4", progress=False)(x, fails)
    assert_untouched(model, before)


def test_plusplus_is_the_limit_however_small_the_gradients(seen):
    model, x, target = seen
    first = GradCAMPlusPlus(model)(x, [times(c, 1e-6) for c in target])
    assert (first.flatten(1).amax(1) == 1).all()
    for factor in (1e-12, 1e-25):
        heat = GradCAMPlusPlus(model)(x, [times(c, factor) for c in target])
        assert torch.allclose(heat, first, atol=1e-4), f"score times {factor}"


def test_plusplus_does_not_depend_on_a_channels_unit():
    torch.manual_seed(0)
    a, g, unit = torch.rand(3, 20, 7, 7), torch.randn(3, 20, 7, 7), 10 ** (20 * torch.rand(1, 20, 1, 1) - 10)
    cam = GradCAMPlusPlus(nn.Identity())
    assert torch.allclose(cam.get_cam_image(unit * a, g / unit), cam.get_cam_image(a, g), rtol=1e-4)


def test_xgradcam_divides_by_nothing_small():
    """Channels that add up to zero: a weight is a mean of gradients, and a channel has no unit."""
    torch.manual_seed(0)
    a, g = torch.randn(3, 20, 7, 7), torch.randn(3, 20, 7, 7)
    a -= a.mean((2, 3), keepdim=True)
    cam = XGradCAM(nn.Identity())
    assert (cam.get_cam_weights(a, g).abs() <= g.abs().amax((2, 3))).all()
    plain = cam.get_cam_image(a, g)
    unit = 10 ** (20 * torch.rand(1, 20, 1, 1) - 10) * torch.randn(1, 20, 1, 1).sign()
    assert torch.allclose(cam.get_cam_image(unit * a, g / unit), plain, atol=1e-5)
    expected = normalize(positive(plain))
    for factor in (1e-15, 1e15):
        for what, image in (("activations", cam.get_cam_image(factor * a, g)), ("gradients", cam.get_cam_image(a, factor * g))):
            assert torch.allclose(normalize(positive(image)), expected, atol=1e-5), f"{what} times {factor}"


@pytest.mark.parametrize("method", [EigenCAM, KPCA_CAM, EigenGradCAM, SegEigenCAM])
def test_the_sign_of_a_component_is_not_the_solvers(seen, method, monkeypatch):
    """Neither channels in another order nor eigenvectors of the other sign turn a map over."""
    model, x, target = seen
    r = record(model, ["layer4"], x, lambda output: output[range(4), target].sum())
    a, g = r.activations[model.layer4][0], r.gradients[model.layer4][0]
    plain = method(model).get_cam_image(a, g)
    order = torch.randperm(a.shape[1], generator=torch.Generator().manual_seed(0))
    shuffled = method(model).get_cam_image(a[:, order], g[:, order])
    assert torch.allclose(shuffled, plain, atol=1e-3 * plain.abs().max())
    solve, solved = torch.linalg.eigh, []

    def other_sign(matrix):  # the first time only: a second change would undo it
        values, vectors = solve(matrix)
        solved.append(vectors)
        return values, vectors if solved[1:] else -vectors

    monkeypatch.setattr(torch.linalg, "eigh", other_sign)
    assert torch.equal(method(model).get_cam_image(a, g), plain)
    assert solved, "the solver was not asked"


def test_fullgrads_weak_channel_counts_little():
    """Two biases, one on each half of the picture; the score is all of the left one and a little of the right one."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(128, 1, bias=False))
    for p in model.parameters():
        nn.init.zeros_(p)
    nn.init.ones_(model[0].bias)
    strength = model[2].weight.data.view(2, 8, 8)
    strength[0, :, :4], strength[1, :, 4:] = 1, 1e-5
    heat = FullGrad(model)(torch.zeros(1, 1, 8, 8), 0)[0]
    assert (heat[:, :4] == 1).all(), "where the strong one is"
    assert (heat[:, 4:] < 1e-4).all(), "where the weak one is"


class Rectifies(nn.Module):
    """A network with one way of calling a ReLU."""

    def __init__(self, relu):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head, self.relu = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4), relu

    def forward(self, x):
        return self.head(self.relu(self.b(self.relu(self.a(x)))).mean((2, 3)))


RELUS = {
    "F.relu": F.relu,
    "F.relu in place": lambda t: F.relu(t, inplace=True),
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "t.relu()": lambda t: t.relu(),
    "t.relu_()": lambda t: t.relu_(),
    "a module in place": nn.ReLU(inplace=True),
}


def test_guided_backpropagation_writes_nothing_into_the_model():
    """Its ReLUs stay its own, too."""
    model = torchvision.models.resnet18().train()
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    before, x = traces(model), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        GuidedBackpropReLUModel(model)(x)
        assert GuidedGradCAM(model)(x).shape == x.shape
    with pytest.raises(ZeroDivisionError):
        GuidedBackpropReLUModel(model)(x, lambda output: 1 / 0)
    assert not x.requires_grad
    assert_untouched(model, before)


@pytest.mark.parametrize("how", RELUS)
def test_a_functional_relu_is_guided_as_a_module_is(how):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12, requires_grad=True)
    guided = GuidedBackpropReLUModel(Rectifies(nn.ReLU()))(x.detach(), 1)
    model = Rectifies(RELUS[how])
    assert torch.allclose(GuidedBackpropReLUModel(model)(x.detach(), 1), guided, atol=1e-6)
    (plain,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    assert not torch.allclose(plain, guided, atol=0.1 * guided.abs().max()), "outside, a ReLU is a ReLU again"


def test_refinecam_multiplies_what_speaks_for_the_score():
    """Where two layers both speak against the score, their product speaks for nothing."""
    model = nn.Sequential(nn.Identity(), nn.Identity(), nn.Flatten(), nn.Linear(64, 1, bias=False))
    nn.init.ones_(model[3].weight)
    x = torch.ones(1, 1, 8, 8)
    x[..., 4:] = -5
    heat = RefineCAM(model, ["0", "1"], base_method=GradCAM)(x, 0)[0]
    assert (heat[:, :4] == 1).all(), "where both speak for it"
    assert not heat[:, 4:].any(), "where both speak against it"


@pytest.mark.parametrize("i", range(4))
def test_finercam_offers_both_weightings(seen, i):
    """The paper's by default: classes that are compared count alike; by their probabilities if asked."""
    model, x, target = seen
    c = target[i]
    others = (c + torch.arange(1, 4)) % 9

    def paper(y):
        return y[c] - 0.6 * y[others].mean()

    def weighed(y):
        return y[c] - 0.6 * (y[others].softmax(0) * y[others]).sum()

    plain = FinerCAM(model, comparisons=others)(x[[i]], c)
    likelier = FinerCAM(model, comparisons=others, weighting="softmax")(x[[i]], c)
    assert torch.allclose(plain, GradCAM(model)(x[[i]], paper), atol=1e-5)
    assert torch.allclose(likelier, GradCAM(model)(x[[i]], weighed), atol=1e-5)
    assert not torch.allclose(plain, likelier, atol=1e-2), "the two cannot be told apart"


@pytest.mark.parametrize("i", range(4))
def test_a_picture_does_not_change_anothers_residual_softmax(seen, i):
    """It is each picture's own: no mean over the batch, whatever else is in it."""
    model, x, target = seen
    targets = [ClassifierOutputReST(int(c)) for c in target]
    y = model(x[[i]])
    alone = each_score([targets[i]], y)
    torch.testing.assert_close(alone[0], y[0, target[i]] + y[0].log_softmax(0)[target[i]])
    together = each_score(targets, model(x))
    torch.testing.assert_close(together[[i]], alone, rtol=1e-4, atol=1e-4)
    beside_a_loud_one = each_score([targets[i], targets[0]], torch.cat([y, 100 * model(x[[0]])]))
    torch.testing.assert_close(beside_a_loud_one[0], alone[0])


def test_the_factorization_overlay_changes_nothing(monkeypatch):
    """Its input is as it was; and it draws where matplotlib has no `get_cmap` any more."""
    for place in (matplotlib.cm, matplotlib.pyplot):
        monkeypatch.delattr(place, "get_cmap", raising=False)
    torch.manual_seed(0)
    picture, where = torch.rand(3, 20, 30), torch.rand(4, 20, 30)
    given = picture.clone(), where.clone(), where.numpy().copy()
    for explanations in (where, given[2]):
        shown = show_factorization_on_image(picture, explanations, concept_labels=list("abcd"))
        assert shown.shape == (20, 60, 3)
        assert shown[:, :30].std() > 0, "nothing is drawn"
    assert torch.equal(picture, given[0]), "the picture"
    assert torch.equal(where, given[1]), "the tensor of explanations"
    assert (given[2] == given[1].numpy()).all(), "the array of explanations"


@pytest.mark.parametrize("layers", [["layer3", "layer4"], ["layer4", "layer3"], ["layer2", "layer3", "layer4"]], ids=" ".join)
def test_shapleycam_takes_several_layers(seen, layers):
    """Each layer has a second derivative of its own: in any order, one run gives what each gives alone."""
    model, x, target = seen
    run, heats = ShapleyCAM(model, layers).run(x, target), []
    for name in layers:
        layer, cam = model.get_submodule(name), ShapleyCAM(model, name)
        alone = cam.run(x, target).record.gradients[layer][0]
        assert torch.allclose(run.record.gradients[layer][0], alone, rtol=1e-4, atol=1e-6), name
        gradient = record(model, [name], x, lambda y: y[range(4), target].sum()).gradients[layer][0]
        assert not torch.allclose(alone, gradient, rtol=1e-2), f"{name}: no second derivative to be told from the gradient"
        heats.append(cam(x, target))
    mean = torch.stack(heats).mean(0)
    expected = mean / mean.flatten(1).amax(1)[:, None, None]
    assert torch.allclose(ShapleyCAM(model, layers)(x, target), expected, atol=1e-4)
