"""Targets: gradients against formulas by hand and PyPI grad-cam's of the same name; through GradCAM, a batch against one by one."""

from collections import namedtuple

import numpy as np
import pytest
import pytorch_grad_cam
import pytorch_grad_cam.utils.model_targets as peer
import torch
from torch import nn

from gradcam_nb import CAM, GradCAM, ReciproCAM, explain
from gradcam_nb.methods.finercam import FinerCAM, FinerTarget
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import TEST, scenes
from gradcam_nb.targets.binary import BinaryClassifierOutputTarget
from gradcam_nb.targets.classifier import ClassifierOutputTarget
from gradcam_nb.targets.contrast import ContrastTarget
from gradcam_nb.targets.finer_weighted import FinerWeightedTarget
from gradcam_nb.targets.multi_label import MultiLabelOutputTarget
from gradcam_nb.targets.output_part import OutputPartTarget, output_part
from gradcam_nb.targets.raw import RawScoresOutputTarget
from gradcam_nb.targets.regression import RegressionOutputTarget
from gradcam_nb.targets.residual_softmax import ClassifierOutputReST
from gradcam_nb.targets.resolve import each_score
from gradcam_nb.targets.softmax import ClassifierOutputSoftmaxTarget, SoftmaxOutputTarget, as_probability

K = 6


def unit(*classes):
    return np.eye(K)[list(classes)].sum(0)


def softmax(y):
    e = np.exp(y - y.max())
    return e / e.sum()


def sigmoid(y):
    return 1 / (1 + np.exp(-y))


def finer_slope(y, c, others, alpha):
    """The quotient rule, one class after the other."""
    p = softmax(y)
    below = sum(p[d] for d in others) + 1e-9
    u = sum(p[d] * (y[c] - alpha * y[d]) for d in others) / below
    slope = np.zeros(K)
    for k in range(K):
        for d in others:
            moved = p[d] * ((d == k) - p[k])
            slope[k] += (p[d] * ((c == k) - alpha * (d == k)) + moved * (y[c] - alpha * y[d]) - moved * u) / below
    return slope


# A target, its value and its gradient for the class scores, in numpy.
FORMULAS = {
    "class": (ClassifierOutputTarget(2), lambda y: y[2], lambda y: unit(2)),
    "softmax": (ClassifierOutputSoftmaxTarget(2), lambda y: softmax(y)[2], lambda y: softmax(y)[2] * (unit(2) - softmax(y))),
    "likeliest": (SoftmaxOutputTarget(), lambda y: softmax(y).max(), lambda y: softmax(y).max() * (unit(y.argmax()) - softmax(y))),
    "residual softmax": (ClassifierOutputReST(2), lambda y: y[2] + np.log(softmax(y)[2]), lambda y: 2 * unit(2) - softmax(y)),
    "raw": (RawScoresOutputTarget(), lambda y: y.sum(), lambda y: np.ones(K)),
    "several": (MultiLabelOutputTarget([0, 3]), lambda y: y[0] + y[3], lambda y: unit(0, 3)),
    "several, weighed": (MultiLabelOutputTarget([0, 3], [2, -0.5]), lambda y: 2 * y[0] - y[3] / 2, lambda y: 2 * unit(0) - unit(3) / 2),
    "all there": (
        MultiLabelOutputTarget([0, 3], probability=True),
        lambda y: np.log(sigmoid(y[0]) * sigmoid(y[3])),
        lambda y: unit(0, 3) * (1 - sigmoid(y)),
    ),
    "a number": (RegressionOutputTarget(4), lambda y: y[4], lambda y: unit(4)),
    "a number, down": (RegressionOutputTarget(4, sign=-1), lambda y: -y[4], lambda y: -unit(4)),
    "nearer": (RegressionOutputTarget(4, toward=0.5), lambda y: -((y[4] - 0.5) ** 2), lambda y: 2 * (0.5 - y[4]) * unit(4)),
    "away": (RegressionOutputTarget(4, sign=-1, toward=0.5), lambda y: (y[4] - 0.5) ** 2, lambda y: 2 * (y[4] - 0.5) * unit(4)),
    "contrast": (ContrastTarget(2, 5), lambda y: np.log(softmax(y)[2] / softmax(y)[5]), lambda y: unit(2) - unit(5)),
    "contrast, two": (ContrastTarget(2, [5, 0]), lambda y: y[2] - (y[5] + y[0]) / 2, lambda y: unit(2) - unit(5, 0) / 2),
    "finer": (
        FinerWeightedTarget(2, [5, 0], 0.7),
        lambda y: sum(softmax(y)[d] * (y[2] - 0.7 * y[d]) for d in (5, 0)) / (softmax(y)[[5, 0]].sum() + 1e-9),
        lambda y: finer_slope(y, 2, [5, 0], 0.7),
    ),
}
TARGETS = {name: target for name, (target, *_) in FORMULAS.items()}
SINGLE, DOUBLE = dict(atol=1e-6, rtol=1e-5), dict(atol=1e-12, rtol=1e-9)
PEERS = {
    "class": peer.ClassifierOutputTarget(2),
    "softmax": peer.ClassifierOutputSoftmaxTarget(2),
    "residual softmax": peer.ClassifierOutputReST(2),
    "finer": peer.FinerWeightedTarget(2, [5, 0], 0.7),
}


def scores(seed, scale=3.0):
    return scale * torch.randn(K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def asked(target, y):
    """What a target says, and its gradient."""
    y = y.clone().requires_grad_()
    u = target(y)
    return u.detach(), torch.autograd.grad(u.sum(), y)[0]


@pytest.mark.parametrize("name", FORMULAS)
def test_value_and_gradient_by_hand(name):
    target, value, slope = FORMULAS[name]
    # The probability is float32 by its page; everything else keeps the precision that it is given.
    close = SINGLE if isinstance(target, (ClassifierOutputSoftmaxTarget, SoftmaxOutputTarget)) else DOUBLE
    for seed in range(10):
        y = scores(seed)
        u, gradient = asked(target, y)
        assert u.shape == ()
        np.testing.assert_allclose(u.numpy(), value(y.numpy()), **close)
        np.testing.assert_allclose(gradient.numpy(), slope(y.numpy()), **close)


@pytest.mark.parametrize("name", FORMULAS)
def test_through_a_linear_head(name):
    """Behind pooling and a linear layer, a layer's gradient is the head's weights times the target's own, the same at all places."""
    target, _, slope = FORMULAS[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, K)).eval()
    x = torch.randn(2, 3, 10, 10)
    run = GradCAM(model, "1").run(x, target)
    for y, gradient in zip(model(x).detach().double().numpy(), run.record.gradients[model[1]][0]):
        by_hand = model[4].weight.detach().double().numpy().T @ slope(y) / 64
        np.testing.assert_allclose(gradient.double().mean((1, 2)).numpy(), by_hand, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 10.0, 40.0])
@pytest.mark.parametrize("name", PEERS)
def test_grad_cam_says_the_same(name, scale):
    for seed in range(10):
        for got, wanted in zip(asked(TARGETS[name], scores(seed, scale)), asked(PEERS[name], scores(seed, scale))):
            torch.testing.assert_close(got.double(), wanted, **(SINGLE if name == "softmax" else DOUBLE))


@pytest.mark.parametrize("category", [0, 1])
def test_grad_cam_says_the_same_of_one_score(category):
    for seed in range(5):
        y = scores(seed)[:1]
        for mine, theirs in (
            (BinaryClassifierOutputTarget(category), peer.BinaryClassifierOutputTarget(category)),
            (RawScoresOutputTarget(), peer.RawScoresOutputTarget()),
        ):
            (value, slope), (their_value, their_slope) = asked(mine, y), asked(theirs, y)
            assert torch.equal(value, their_value.reshape(())), (mine, seed)
            assert torch.equal(slope, their_slope), (mine, seed)
            assert mine(y).shape == ()


def test_residual_softmax_of_each_picture_is_grad_cams():
    batch = torch.stack([scores(seed) for seed in range(4)])
    torch.testing.assert_close(
        each_score([ClassifierOutputReST(2)] * 4, batch), torch.stack([peer.ClassifierOutputReST(2)(y) for y in batch])
    )


@pytest.mark.parametrize("name", ["SoftmaxOutputTarget", "RawScoresOutputTarget"])
def test_why_these_are_not_grad_cams(name):
    """Theirs gives a vector for a vector, which its backward pass refuses; and the sum of a softmax has no gradient."""
    theirs = getattr(peer, name)()
    assert theirs(scores(0)).shape == (K,)
    model, x = load("scenes-cnn"), scenes(1, TEST + 2000).images * 2 - 1
    with pytest.raises(RuntimeError, match="scalar"):
        pytorch_grad_cam.GradCAM(model, [model.layer4])(x, [theirs])
    ours = {"SoftmaxOutputTarget": SoftmaxOutputTarget(), "RawScoresOutputTarget": RawScoresOutputTarget()}[name]
    assert GradCAM(model, "layer4")(x, ours).shape == (1, 128, 128)
    y = scores(0).requires_grad_()
    assert torch.autograd.grad(y.softmax(0).sum(), y)[0].abs().max() < 1e-15


@pytest.mark.parametrize(
    "mine, theirs",
    [
        (BinaryClassifierOutputTarget(0), peer.BinaryClassifierOutputTarget(0)),
        (RawScoresOutputTarget(), peer.RawScoresOutputTarget()),
        (FinerWeightedTarget(1, [2, 3], 1.0), peer.FinerWeightedTarget(1, [2, 3], 1.0)),
    ],
    ids=["binary", "raw", "finer"],
)
def test_in_grad_cams_own_cam(mine, theirs):
    """Code written for PyPI grad-cam may take our targets: the maps are the same to the last digit or two."""
    model = load("scenes-cnn")
    if not isinstance(mine, FinerWeightedTarget):
        model.fc = nn.Linear(96, 1).eval()
    x = scenes(2, TEST + 2000).images * 2 - 1
    with pytorch_grad_cam.GradCAM(model, [model.layer4]) as cam:
        np.testing.assert_allclose(cam(x, [mine] * 2), cam(x, [theirs] * 2), atol=1e-5)


def test_grad_cams_formula_turns_over_where_the_model_is_sure():
    """The constant in its denominator outweighs the probabilities; ours is theirs, and FinerCAM's softmax keeps its slope."""
    for lead, negative in ((18.0, False), (19.0, True), (22.0, True), (30.0, True)):
        y = torch.zeros(K, dtype=torch.float64)
        y[2] = lead
        asked_of = TARGETS["finer"], PEERS["finer"], FinerTarget(2, 0.7, [5, 0], "softmax")
        ours, theirs, softmaxed = (asked(target, y)[1][2].item() for target in asked_of)
        assert ours == pytest.approx(theirs, rel=1e-9), lead
        assert (ours < 0) == negative, lead
        assert softmaxed == pytest.approx(1), lead


def test_finercams_target_is_a_contrast():
    for seed in range(5):
        y = scores(seed)
        for others in ([5], [5, 0]):
            for got, wanted in zip(asked(ContrastTarget(2, others), y), asked(FinerTarget(2, 1, others), y)):
                torch.testing.assert_close(got, wanted)
        for got, wanted in zip(asked(FinerWeightedTarget(2, [5, 0], 0.7), y), asked(FinerTarget(2, 0.7, [5, 0], "softmax"), y)):
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("category", [1, 0])
def test_one_score_is_two_scores(category):
    """A sigmoid's score is what two scores of a softmax differ by."""
    y = scores(0)[:1].requires_grad_()
    two = torch.cat([torch.zeros(1, dtype=y.dtype), y])
    torch.testing.assert_close(BinaryClassifierOutputTarget(category)(y), ContrastTarget(category, 1 - category)(two))


# ---------------------------------------------------------------- through a model

Pair = namedtuple("Pair", "logits extra")
HOLD = {
    "a tensor": lambda y: y,
    "logits": lambda y: {"logits": y, "extra": 0 * y},
    "out": lambda y: {"aux": 0 * y, "out": y},
    "a tuple": lambda y: (y, 0 * y),
    "a named tuple": lambda y: Pair(y, 0 * y),
}


class Small(nn.Module):
    def __init__(self, hold, classes=K):
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.act, self.head, self.hold = nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Linear(8, classes), hold

    def forward(self, x):
        return self.hold(4 * self.head(self.act(self.conv(x)).mean((2, 3))))


@pytest.fixture(scope="module")
def x():
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


PLAIN = {name: target for name, target in TARGETS.items() if name != "raw"}


@pytest.mark.filterwarnings("ignore:blank heat map")
@pytest.mark.parametrize("hold", HOLD)
def test_batch_is_one_by_one(x, hold):
    """Each picture with a target of its own; whatever holds the class scores."""
    model, names = Small(HOLD[hold]).eval(), list(PLAIN)
    cam, plain = GradCAM(model, "act"), GradCAM(Small(HOLD["a tensor"]).eval(), "act")
    for first in range(len(names)):
        targets = [PLAIN[names[(first + i) % len(names)]] for i in range(4)]
        together = cam(x, targets)
        torch.testing.assert_close(together, torch.cat([cam(x[[i]], targets[i]) for i in range(4)]), atol=1e-4, rtol=0)
        torch.testing.assert_close(together, plain(x, targets), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:blank heat map")
@pytest.mark.parametrize("hold", [lambda y: y, lambda y: y[:, 0], lambda y: {"logits": y}], ids=["B × 1", "B", "logits"])
def test_batch_is_one_by_one_with_one_score(x, hold):
    model = Small(hold, 1).eval()
    cam = GradCAM(model, "act")
    targets = [
        BinaryClassifierOutputTarget(0),
        BinaryClassifierOutputTarget(1),
        RegressionOutputTarget(toward=2),
        RegressionOutputTarget(sign=-1),
    ]
    together = cam(x, targets)
    torch.testing.assert_close(together, torch.cat([cam(x[[i]], targets[i]) for i in range(4)]), atol=1e-4, rtol=0)

    def score(sign):
        return lambda output: sign * (output["logits"] if isinstance(output, dict) else output).reshape(())

    signs = [-1, 1, 1 if each_score([RegressionOutputTarget()] * 4, model(x))[2] < 2 else -1, -1]
    torch.testing.assert_close(together, cam(x, [score(s) for s in signs]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*FORMULAS, "binary"])
def test_half_precision(name, dtype):
    """A number and a gradient of it, finite, near those of float32."""
    target = BinaryClassifierOutputTarget(0) if name == "binary" else TARGETS[name]
    y = scores(3, 2.0)[: 1 if name == "binary" else K].to(dtype)
    (u, gradient), (wanted, slope) = asked(target, y), asked(target, y.float())
    assert u.shape == ()
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()
    torch.testing.assert_close(u.float(), wanted, atol=0.05, rtol=0.02)
    torch.testing.assert_close(gradient.float(), slope, atol=0.05, rtol=0.02)


def test_finer_weighted_in_half_precision_where_nothing_else_is_likely():
    y = torch.tensor([0.0, 40.0, 0.0], dtype=torch.float16)
    assert all(t.isfinite().all() for t in asked(FinerWeightedTarget(1, [0, 2], 1.0), y))


@pytest.mark.parametrize("name", [*FORMULAS, "binary", "part"])
def test_repr_is_how_it_is_made(name):
    target = {"binary": BinaryClassifierOutputTarget(0), "part": OutputPartTarget(("heads", 1), 3)}.get(name) or TARGETS[name]
    again = eval(repr(target))
    assert repr(again) == repr(target)
    if name in TARGETS:
        assert torch.equal(again(scores(0)), target(scores(0)))


def test_methods_take_them():
    """A method that asks for a class's probability by its paper leaves them as they are; one that has weights for classes only says so."""
    model, pictures = load("scenes-cnn"), scenes(1, TEST + 2000).images * 2 - 1
    for target in (
        MultiLabelOutputTarget([1, 2]),
        ContrastTarget(1, 2),
        SoftmaxOutputTarget(),
        OutputPartTarget(1, lambda number: number),
        RegressionOutputTarget(),
        FinerWeightedTarget(1, [2], 1.0),
    ):
        assert as_probability(target) is target
        with pytest.raises(ValueError, match="CAM has weights for classes only"):
            CAM(model, "layer4")(pictures, target)
    by_hand = ReciproCAM(model, "layer4", form="probability")(pictures, lambda y: y[1] - y[2])
    assert torch.equal(ReciproCAM(model, "layer4", form="probability")(pictures, ContrastTarget(1, 2)), by_hand)


# ---------------------------------------------------------------- a part of the output


def test_part_of_many_heads(x):
    model = Small(lambda y: {"heads": (y[:, :2], {"deep": y[:, 2:]}), "loss": y.sum()}).eval()
    plain = Small(lambda y: y).eval()
    for part, target, category in (
        (("heads", 0), 1, 1),
        (("heads", 1, "deep"), 3, 5),
        (("heads", 1, "deep", 0), lambda number: number, 2),
        (["heads", -1], lambda head: head["deep"][1], 3),
    ):
        torch.testing.assert_close(
            GradCAM(model, "act")(x, OutputPartTarget(part, target)), GradCAM(plain, "act")(x, category), atol=1e-5, rtol=0
        )
    for target in PLAIN.values():
        torch.testing.assert_close(OutputPartTarget("a", target)({"a": scores(0)}), target(scores(0)))


def test_part_of_a_transformers_output():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_labels=5,
        output_hidden_states=True,
    )
    model = transformers.ViTForImageClassification(config).eval()
    x = torch.randn(2, 3, 32, 32)
    cam = GradCAM(model)
    plain = cam(x, 3)
    for part in ("logits", 0):
        assert torch.equal(cam(x, OutputPartTarget(part, 3)), plain)
    assert torch.equal(cam(x, ContrastTarget(3, 1)), cam(x, lambda output: output.logits[3] - output.logits[1]))
    deep = OutputPartTarget(("hidden_states", -1, 0), lambda token: token[5])  # a number of the class token, in front of the last norm
    together = each_score([deep] * 2, model(x))
    assert torch.equal(together, model(x).hidden_states[-1][:, 0, 5])
    with pytest.raises(ValueError, match="pass one of 'logits', 'hidden_states'"):
        cam(x, OutputPartTarget("logit", 3))


def test_part_names_what_there_is():
    y = torch.zeros(3)
    output = {"heads": (y, y), "pair": Pair(y, 0), "none": None, "one": torch.tensor(1.0)}
    for part, words in (
        ("logits", "^part: output is of type dict and has no 'logits'; pass one of 'heads', 'pair', 'one'$"),
        (0, "has no 0; pass one of 'heads'"),
        (("heads", 2), r"^part: output\['heads'\] is of type tuple and has no 2; pass 0 to 1"),
        (("heads", "count"), "has no 'count'; pass 0 to 1"),
        (("pair", "keys"), "is of type Pair and has no 'keys'; pass one of 'logits', 'extra'"),
        (("heads", 0, 3), r"\['heads'\]\[0\] is of type Tensor and has no 3; pass an index into its shape \(3,\)"),
        (("heads", 0, "shape"), r"has no 'shape'; pass an index into its shape \(3,\)"),
        (("one", 0), "has no 0; end the path there"),
        (("none", 0), "has no 'none'"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            output_part(output, part)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: BinaryClassifierOutputTarget(2), "category: got 2; pass 1"),
        (lambda: BinaryClassifierOutputTarget("1"), "category: got '1'; pass 1"),
        (lambda: BinaryClassifierOutputTarget(1)(scores(0)), r"6 numbers for a picture.*pass ClassifierOutputTarget\(1\)"),
        (lambda: RawScoresOutputTarget()({"a": 1}), "is a dict; say which part"),
        (lambda: SoftmaxOutputTarget()(scores(0)[:1]), "single score"),
        (lambda: SoftmaxOutputTarget()(scores(0)[0]), "single score"),
        (lambda: MultiLabelOutputTarget(3), "categories: got 3; pass a list"),
        (lambda: MultiLabelOutputTarget([]), "categories: got none"),
        (lambda: MultiLabelOutputTarget([1, 2], [1.0]), "weights: got 1 for 2 classes"),
        (lambda: MultiLabelOutputTarget([1, K])(scores(0)), "pass 0 to 5"),
        (lambda: RegressionOutputTarget(sign=0), "sign: got 0"),
        (lambda: RegressionOutputTarget(-1)(scores(0)), "index: got -1 of a model with 6 numbers; pass 0 to 5"),
        (lambda: ContrastTarget(1, 1), "other: got class 1, which cannot be compared with itself"),
        (lambda: ContrastTarget(1, []), "other: got no class"),
        (lambda: ContrastTarget(1, K)(scores(0)), "pass 0 to 5"),
        (lambda: ContrastTarget(1, 2)({"boxes": torch.zeros(2, 4)}), "no list of class scores"),
        (lambda: FinerWeightedTarget(1, 2, 1.0), "comparison_categories: got 2; pass a list"),
        (lambda: FinerWeightedTarget(1, [], 1.0), "comparison_categories: got none"),
        (lambda: FinerWeightedTarget(1, [-1], 1.0)(scores(0)), "pass 0 to 5"),
        (lambda: OutputPartTarget(None, 1), "part: got None; pass a key"),
        (lambda: OutputPartTarget((), 1), r"part: got \(\); pass a key"),
        (lambda: OutputPartTarget(1.5, 1), "part: got 1.5; pass a key"),
        (lambda: OutputPartTarget("a", "cat"), "target: got str; pass a class index or a callable"),
    ],
)
def test_errors(make, words):
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_finercam_wants_a_class():
    model, pictures = load("scenes-cnn"), scenes(1, TEST + 2000).images * 2 - 1
    with pytest.raises(ValueError, match=r"ClassifierOutputReST\(\) names none; pass a class index"):
        FinerCAM(model, "layer4")(pictures, ClassifierOutputReST())
    # A class by name has no index until the model has answered.
    assert explain("scene:3", method="FinerCAM", target="striped star").heat_map.max() == 1
