"""ScoreCAM and its family against their papers, slowly: one pass a channel, masks in plain numpy."""

import copy
import gc
import weakref
from functools import cache

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from gradcam_nb.methods.gscorecam import GScoreCAM
from gradcam_nb.methods.iscam import ISCAM
from gradcam_nb.methods.scorecam import ScoreCAM
from gradcam_nb.methods.sscam import SSCAM

CLASS = 3
QUIET = dict(progress=False)
SWIN = dict(img_size=64, window_size=4, embed_dim=24, depths=(1, 1), num_heads=(2, 4))
NETWORKS = {
    "resnet18": (torchvision.models.resnet18, "layer1", lambda t: t),
    "densenet121": (torchvision.models.densenet121, "features.pool0", lambda t: t),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, "features.6", lambda t: t),
    "vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=48, depth=2, num_heads=2),
        "blocks.1.norm1",
        lambda t: t[:, 1:].transpose(1, 2).unflatten(2, (4, 4)),
    ),
    "swin": (lambda: timm.create_model("swin_tiny_patch4_window7_224", **SWIN), "layers.1", lambda t: t.permute(0, 3, 1, 2)),
}


@cache
def built(name):
    """A network, two pictures, what its layer gives and the class score's gradient there, as numpy."""
    torch.manual_seed(0)
    make, layer, laid = NETWORKS[name]
    model, kept = make().eval(), []
    for norm in (m for m in model.modules() if isinstance(m, nn.LayerNorm)):
        nn.init.normal_(norm.weight)  # else all tokens are equally long
    side = 64 if name in ("vit", "swin") else 32
    x = torch.randn(2, 3, side, side)
    handle = model.get_submodule(layer).register_forward_hook(lambda m, a, o: (kept.append(o), o.clone())[1])
    output = model(x)
    handle.remove()
    (gradient,) = torch.autograd.grad(output[:, CLASS].sum(), kept[0])
    return model, x, *(laid(t.detach()).numpy().astype(float) for t in (kept[0], gradient))


def lines(old, new):
    """The matrix of linear interpolation with half-pixel centres."""
    matrix = np.zeros((new, old))
    for i in range(new):
        at = np.clip((i + 0.5) * old / new - 0.5, 0, old - 1)
        low = min(int(at), old - 1)
        matrix[i, low] += 1 - (at - low)
        matrix[i, min(low + 1, old - 1)] += at - low
    return matrix


def enlarged(channel, size):
    return lines(channel.shape[0], size) @ channel @ lines(channel.shape[1], size).T


def slow_scores(model, picture, activations, looks=lambda mask, picture: [mask * picture], probability=False):
    """The mean score over the looks through each channel's mask."""
    scores = []
    for channel in activations:
        mask = enlarged(channel, picture.shape[-1])
        mask = torch.tensor((mask - mask.min()) / (mask.max() - mask.min()), dtype=torch.float32)
        with torch.no_grad():
            outputs = [model(look[None])[0] for look in looks(mask, picture)]
        scores.append(np.mean([(o.softmax(0) if probability else o)[CLASS].item() for o in outputs]))
    return np.array(scores)


def softmax(scores):
    return np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()


def slow_map(activations, weights, size):
    raw = np.maximum(0, sum(w * a for w, a in zip(weights, activations)))
    return enlarged(raw, size) / enlarged(raw, size).max()


def check(method, name, slow, **how):
    """Weights and map of two pictures; the score is scaled so that the weights differ by orders of magnitude."""
    model, x, activations, gradients = built(name)
    raw = [slow(model, *one) for one in zip(x, activations, gradients)]
    gain = 2 / min(r.std() for r in raw)
    cam = method(model, NETWORKS[name][1], batch_size=24, **QUIET, **how)
    target = lambda output: gain * output[CLASS]  # noqa: E731
    run = cam.run(x, target)
    (call,) = run.calls(run.layers[0])
    weights, heat = cam.get_channel_weights(run, call, [run.targets])[0].numpy(), cam(x, target).numpy()
    for i in range(2):
        expected = softmax(gain * raw[i])
        assert expected.max() > 3 / len(expected)
        assert np.abs(weights[i] - expected).max() < 1e-4 * expected.max()
        assert np.abs(heat[i] - slow_map(activations[i], expected, x.shape[-1])).max() < 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_scorecam_is_its_formula(name):
    check(ScoreCAM, name, lambda model, picture, a, g: slow_scores(model, picture, a))


@pytest.mark.parametrize("name", ["mobilenet_v2", "vit"])
def test_iscam_is_its_formula(name):
    for path, brightness in (("paper", [0, 0.25, 0.75, 1.5]), ("straight", [0.25, 0.5, 0.75, 1])):
        looks = lambda mask, picture: [b * mask * picture for b in brightness]  # noqa: E731, B023
        check(ISCAM, name, lambda model, picture, a, g: slow_scores(model, picture, a, looks), steps=4, path=path)  # noqa: B023


@pytest.mark.parametrize("name", ["mobilenet_v2", "vit"])
def test_sscam_is_its_formula(name):
    side = built(name)[1].shape[-1]
    on_mask = 0.3 * torch.randn(3, side, side, generator=torch.Generator().manual_seed(5))
    on_input = 0.3 * torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(5))
    for noise, looks in (
        ("mask", lambda mask, picture: [(mask + n) * picture for n in on_mask]),
        ("input", lambda mask, picture: [mask * picture + n for n in on_input]),
    ):
        check(SSCAM, name, lambda model, picture, a, g: slow_scores(model, picture, a, looks), samples=3, std=0.3, seed=5, noise=noise)  # noqa: B023


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("name", ["mobilenet_v2", "swin"])
def test_gscorecam_is_its_formula(name, absolute):
    def slow(model, picture, activations, gradients):
        strength = gradients.mean((1, 2))
        chosen = np.argsort(-np.abs(strength) if absolute else -strength)[:12]
        scores = np.full(len(activations), -np.inf)
        scores[chosen] = slow_scores(model, picture, activations[chosen])
        return scores

    model, x, activations, gradients = built(name)
    raw = [slow(model, *one) for one in zip(x, activations, gradients)]
    cam = GScoreCAM(model, NETWORKS[name][1], k=12, absolute=absolute, **QUIET)
    run = cam.run(x, CLASS)
    (call,) = run.calls(run.layers[0])
    for weights, scores in zip(cam.get_channel_weights(run, call, [run.targets])[0].numpy(), raw):
        assert np.abs(weights - softmax(scores)).max() < 1e-4 * softmax(scores).max()


@pytest.mark.parametrize("name", ["mobilenet_v2", "vit"])
def test_probability_is_the_authors_form(name):
    model, x, activations, _ = built(name)
    heat = ScoreCAM(model, NETWORKS[name][1], form="probability", **QUIET)(x, CLASS).numpy()
    for i in range(2):
        expected = slow_map(activations[i], slow_scores(model, x[i], activations[i], probability=True), x.shape[-1])
        assert np.abs(heat[i] - expected).max() < 1e-4


class Small(nn.Module):
    """A layer of the picture's own size, `extra` channels that are constant, a score that spreads."""

    def __init__(self, extra=None, dims=2):
        super().__init__()
        torch.manual_seed(1)
        conv = getattr(nn, f"Conv{dims}d")
        self.body, self.head, self.extra = nn.Sequential(conv(3, 8, 3, padding=1), nn.ReLU()), nn.Linear(8, 5), extra
        self.layer = nn.Identity()

    def forward(self, x):
        a = self.body(x)
        if self.extra is not None:
            a = torch.cat([a, torch.full_like(a[:, :2], self.extra)], 1)
        a = self.layer(a)
        return 20 * self.head(a[:, :8].flatten(2).pow(2).mean(-1))


def pearson(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).float())[0, 1].item()


def test_agrees_with_grad_cam():
    """At the picture's own size nothing is resized; elsewhere they place the corners differently."""
    pgc, targets = pytest.importorskip("pytorch_grad_cam"), pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    torch.manual_seed(0)
    small, x = Small().eval(), torch.randn(2, 3, 24, 24)
    for model, layer, x in ((small, "layer", x), *((built(n)[0], NETWORKS[n][1], built(n)[1]) for n in ("resnet18",))):
        theirs = pgc.ScoreCAM(model=(other := copy.deepcopy(model)), target_layers=[other.get_submodule(layer)])
        theirs = torch.tensor(theirs(x, [targets.ClassifierOutputTarget(CLASS)] * 2))
        ours = ScoreCAM(model, layer, **QUIET)(x, CLASS)
        assert all(pearson(a, b) >= 0.999 for a, b in zip(ours, theirs))


def test_agrees_with_torchcam():
    torchcam = pytest.importorskip("torchcam.methods")
    torch.manual_seed(0)
    model, x = Small().eval(), torch.randn(2, 3, 24, 24)
    summed = ISCAM(model, "layer", steps=5, **QUIET)
    summed.brightness, summed.variants = (torch.arange(1, 6) / 5).cumsum(0), 5  # their sum begins a step later
    for ours, theirs in (
        (ScoreCAM(model, "layer", **QUIET), torchcam.ScoreCAM(model, "layer", input_shape=(3, 24, 24))),
        (
            SSCAM(model, "layer", samples=2, std=0, **QUIET),
            torchcam.SSCAM(model, "layer", num_samples=2, std=1e-9, input_shape=(3, 24, 24)),
        ),
        (summed, torchcam.ISCAM(model, "layer", num_samples=5, input_shape=(3, 24, 24))),
    ):
        with theirs, torch.no_grad():
            scores = model(x)
            (expected,) = theirs([CLASS] * 2, scores)
        assert all(pearson(a, b) >= 0.999 for a, b in zip(ours(x, CLASS), expected))


FAMILY = {
    "ScoreCAM": (ScoreCAM, {}),
    "probability": (ScoreCAM, dict(form="probability")),
    "SSCAM": (SSCAM, dict(samples=3, std=0.5)),
    "SSCAM input": (SSCAM, dict(samples=3, std=0.5, noise="input")),
    "ISCAM": (ISCAM, dict(steps=3)),
    "GScoreCAM": (GScoreCAM, dict(k=4)),
}
each = pytest.mark.parametrize("name", FAMILY)


def made(name, model, **how):
    method, options = FAMILY[name]
    return method(model, "layer", **QUIET, **options, **how)


@each
def test_a_batch_is_its_pictures(name):
    """Whatever the size of the passes, and whatever else is asked."""
    torch.manual_seed(0)
    model, x = Small().eval(), torch.randn(3, 3, 20, 16)
    heat = made(name, model)(x, [0, 1, 2])
    for other in (torch.cat([made(name, model)(x[[i]], i) for i in range(3)]), made(name, model, batch_size=5)(x, [0, 1, 2])):
        torch.testing.assert_close(other, heat, rtol=0, atol=1e-4)
    many = made(name, model, batch_size=7).many(x, [0, 1, 2, 4])
    torch.testing.assert_close(torch.stack([many[i, i] for i in range(3)]), heat, rtol=0, atol=1e-4)


@each
@pytest.mark.parametrize("dims", [1, 3])
def test_in_one_and_three_dimensions(name, dims):
    torch.manual_seed(0)
    model, x = Small(dims=dims).eval(), torch.randn(2, 3, *(9, 7, 8)[:dims])
    heat = made(name, model)(x, CLASS)
    assert heat.shape == x.shape[:1] + x.shape[2:] and (heat.flatten(1).amax(1) == 1).all() and heat.min() >= 0


@each
@pytest.mark.parametrize("constant", [0.0, 2.0])
def test_constant_channels_count_for_nothing(name, constant):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    passes, more = [], Small(extra=constant).eval()
    more.head.register_forward_hook(lambda m, a, o: passes.append(len(o)))
    heat = made(name, more)(x, CLASS)
    taken = sum(passes)
    torch.testing.assert_close(heat, made(name, Small().eval())(x, CLASS), rtol=0, atol=1e-4)
    cam = made(name, more)
    assert taken <= 2 * cam.variants * 8 + 8  # and what the road itself runs: no pass for the two constant ones


def test_all_constant_is_blank_and_says_so():
    model = Small(extra=1.0).eval()
    model.body[0] = nn.Conv2d(3, 8, 1)
    with pytest.warns(UserWarning, match="blank heat map"):
        assert not ScoreCAM(model, "layer", **QUIET)(torch.zeros(1, 3, 8, 8), CLASS).any()


@each
def test_stopped_in_the_middle(name):
    """Ctrl-C in a later pass: no hook, flag or number of the model has changed."""
    torch.manual_seed(0)
    model, x, calls = Small().train(), torch.randn(2, 3, 16, 16), []
    state = copy.deepcopy(model.state_dict())

    def stop(*_):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    handle = model.head.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        made(name, model, batch_size=1)(x, CLASS)
    handle.remove()
    assert all(m.training and not m._forward_hooks and "forward" not in m.__dict__ for m in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values()))


@each
def test_nothing_is_kept(name):
    """No activation of a masked pass lives on while the next ones run, and none afterwards."""
    torch.manual_seed(0)
    model, x, seen, alive = Small().eval(), torch.randn(2, 3, 16, 16), [], []

    def look(module, args, output):
        alive.append(sum(ref() is not None for ref in seen))
        seen.append(weakref.ref(output))

    handle = model.body.register_forward_hook(look)
    cam = made(name, model, batch_size=2)
    cam(x, CLASS)
    handle.remove()
    gc.collect()
    assert len(seen) > 3 and max(alive) <= 2 and all(ref() is None for ref in seen)
    assert not [v for v in vars(cam).values() if isinstance(v, torch.Tensor) and v.numel() > 16 and v is not cam.outputs]


def test_noise_is_not_that_of_others():
    """It depends on the seed alone, and the global generator is left alone."""
    torch.manual_seed(0)
    model, x, state = Small().eval(), torch.randn(2, 3, 16, 16), torch.get_rng_state()
    first, again, other = (made("SSCAM", model, seed=seed)(x, CLASS) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=1e-3)
    assert torch.equal(state, torch.get_rng_state())


def test_inputs_of_other_kinds():
    """A dict, a tuple with something that has no places, a list of pictures."""

    class Named(Small):
        def forward(self, image, gain=None):
            return super().forward(image) * (1 if gain is None else gain[:, None])

    class Listed(Small):
        def forward(self, images):
            return super().forward(torch.stack(images))

    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    expected = ScoreCAM(Small().eval(), "layer", **QUIET)(x, CLASS)
    for model, given in ((Named(), {"image": x}), (Named(), (x, torch.ones(2))), (Listed(), list(x))):
        torch.testing.assert_close(ScoreCAM(model.eval(), "layer", **QUIET)(given, CLASS), expected, rtol=0, atol=1e-4)
