"""ScoreCAM and its family against their papers, slowly: one pass a channel, masks in plain numpy."""

import copy
import gc
import weakref
from functools import cache, partial

import numpy as np
import pytest
import timm
import torch
import torchvision
from oracles import (
    assert_same,
    assert_same_state,
    assert_untouched,
    correlation,
    enlarged,
    graph,
    heat_map,
    on_grid,
    stopping,
    weighed,
)
from torch import nn

from gradcam_nb.methods.gscorecam import GScoreCAM
from gradcam_nb.methods.iscam import ISCAM
from gradcam_nb.methods.scorecam import ScoreCAM
from gradcam_nb.methods.sscam import SSCAM

CLASS = 3
QUIET = dict(progress=False)
TINY_VIT = dict(img_size=64, embed_dim=48, depth=2, num_heads=2)
TINY_SWIN = dict(img_size=64, window_size=4, embed_dim=24, depths=(1, 1), num_heads=(2, 4))
NETWORKS = {  # how it is built, the layer, how the layer lies on the picture
    "resnet18": (torchvision.models.resnet18, "layer1", on_grid),
    "densenet121": (torchvision.models.densenet121, "features.pool0", on_grid),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, "features.6", on_grid),
    "vit": (partial(timm.create_model, "vit_tiny_patch16_224", **TINY_VIT), "blocks.1.norm1", on_grid),
    "swin": (partial(timm.create_model, "swin_tiny_patch4_window7_224", **TINY_SWIN), "layers.1", lambda t: t.permute(0, 3, 1, 2)),
}


@cache
def built(name):
    """A network, two pictures, what its layer gives and the class score's gradient there."""
    torch.manual_seed(0)
    make, layer, laid = NETWORKS[name]
    model = make().eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.LayerNorm)):
        nn.init.normal_(norm.weight)  # else all tokens are equally long
    side = 64 if name in ("vit", "swin") else 32
    x = torch.randn(2, 3, side, side)
    return model, x, *graph(model, layer, x, lambda output: output[:, CLASS].sum(), laid)


def seen_through(mask, picture):
    """What ScoreCAM shows the model: the picture under its mask, once."""
    return [mask * picture]


def slow_scores(model, picture, activations, looks=seen_through, probability=False):
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


def check(method, name, slow, **how):
    """Weights and map of two pictures; the score is scaled so that the weights differ by orders of magnitude."""
    model, x, activations, gradients = built(name)
    raw = [slow(model, *one) for one in zip(x, activations, gradients)]
    gain = 2 / min(r.std() for r in raw)
    cam = method(model, NETWORKS[name][1], batch_size=24, **QUIET, **how)

    def target(output):
        return gain * output[CLASS]

    run = cam.run(x, target)
    (call,) = run.calls(run.layers[0])
    weights, heat = cam.get_channel_weights(run, call, [run.targets])[0].numpy(), cam(x, target).numpy()
    for i in range(2):
        expected = softmax(gain * raw[i])
        assert expected.max() > 3 / len(expected), f"picture {i}: all channels weigh the same"
        assert_same(weights[i], expected, f"picture {i}, weights")
        apart = np.abs(heat[i] - heat_map(weighed(activations[i], expected), x.shape[-1])).max()
        assert apart < 1e-4, f"picture {i}, heat map: {apart:.1e} apart"


@pytest.mark.parametrize("name", NETWORKS)
def test_scorecam_is_its_formula(name):
    check(ScoreCAM, name, lambda model, picture, a, g: slow_scores(model, picture, a))


@pytest.mark.parametrize("path, brightness", [("paper", [0, 0.25, 0.75, 1.5]), ("straight", [0.25, 0.5, 0.75, 1])])
@pytest.mark.parametrize("name", ["mobilenet_v2", "vit"])
def test_iscam_is_its_formula(name, path, brightness):
    def looks(mask, picture):
        return [b * mask * picture for b in brightness]

    check(ISCAM, name, lambda model, picture, a, g: slow_scores(model, picture, a, looks), steps=4, path=path)


@pytest.mark.parametrize("noise", ["mask", "input"])
@pytest.mark.parametrize("name", ["mobilenet_v2", "vit"])
def test_sscam_is_its_formula(name, noise):
    side, rng = built(name)[1].shape[-1], torch.Generator().manual_seed(5)
    drawn = 0.3 * torch.randn(3, *((side, side) if noise == "mask" else (3, side, side)), generator=rng)

    def looks(mask, picture):
        return [(mask + n) * picture if noise == "mask" else mask * picture + n for n in drawn]

    check(SSCAM, name, lambda model, picture, a, g: slow_scores(model, picture, a, looks), samples=3, std=0.3, seed=5, noise=noise)


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
    for i, weights in enumerate(cam.get_channel_weights(run, call, [run.targets])[0].numpy()):
        assert_same(weights, softmax(raw[i]), f"picture {i}")


@pytest.mark.parametrize("name", ["mobilenet_v2", "vit"])
def test_probability_is_the_authors_form(name):
    model, x, activations, _ = built(name)
    heat = ScoreCAM(model, NETWORKS[name][1], form="probability", **QUIET)(x, CLASS).numpy()
    for i in range(2):
        weights = slow_scores(model, x[i], activations[i], probability=True)
        expected = heat_map(weighed(activations[i], weights), x.shape[-1])
        assert np.abs(heat[i] - expected).max() < 1e-4, f"picture {i}"


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


@pytest.mark.parametrize("name", ["its own size", "resnet18"])
def test_agrees_with_grad_cam(name):
    """At the picture's own size nothing is resized; elsewhere they place the corners differently."""
    pgc, targets = pytest.importorskip("pytorch_grad_cam"), pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    torch.manual_seed(0)
    if name == "its own size":
        model, layer, x = Small().eval(), "layer", torch.randn(2, 3, 24, 24)
    else:
        (model, x, *_), layer = built(name), NETWORKS[name][1]
    other = copy.deepcopy(model)
    theirs = pgc.ScoreCAM(model=other, target_layers=[other.get_submodule(layer)])(x, [targets.ClassifierOutputTarget(CLASS)] * 2)
    for i, (a, b) in enumerate(zip(ScoreCAM(model, layer, **QUIET)(x, CLASS), theirs)):
        assert correlation(a, b) >= 0.999, f"picture {i}"


@pytest.mark.parametrize("name", ["ScoreCAM", "SSCAM", "ISCAM"])
def test_agrees_with_torchcam(name):
    torchcam = pytest.importorskip("torchcam.methods")
    torch.manual_seed(0)
    model, x = Small().eval(), torch.randn(2, 3, 24, 24)
    summed = ISCAM(model, "layer", steps=5, **QUIET)
    summed.brightness, summed.variants = (torch.arange(1, 6) / 5).cumsum(0), 5  # their sum begins a step later
    ours, theirs = {
        "ScoreCAM": (ScoreCAM(model, "layer", **QUIET), dict()),
        "SSCAM": (SSCAM(model, "layer", samples=2, std=0, **QUIET), dict(num_samples=2, std=1e-9)),
        "ISCAM": (summed, dict(num_samples=5)),
    }[name]
    with getattr(torchcam, name)(model, "layer", input_shape=(3, 24, 24), **theirs) as peer, torch.no_grad():
        scores = model(x)
        (expected,) = peer([CLASS] * 2, scores)
    for i, (a, b) in enumerate(zip(ours(x, CLASS), expected)):
        assert correlation(a, b) >= 0.999, f"picture {i}"


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
    one_by_one = torch.cat([made(name, model)(x[[i]], i) for i in range(3)])
    torch.testing.assert_close(one_by_one, heat, rtol=0, atol=1e-4)
    torch.testing.assert_close(made(name, model, batch_size=5)(x, [0, 1, 2]), heat, rtol=0, atol=1e-4)
    many = made(name, model, batch_size=7).many(x, [0, 1, 2, 4])
    torch.testing.assert_close(torch.stack([many[i, i] for i in range(3)]), heat, rtol=0, atol=1e-4)


@each
@pytest.mark.parametrize("dims", [1, 3])
def test_in_one_and_three_dimensions(name, dims):
    torch.manual_seed(0)
    model, x = Small(dims=dims).eval(), torch.randn(2, 3, *(9, 7, 8)[:dims])
    heat = made(name, model)(x, CLASS)
    assert heat.shape == x.shape[:1] + x.shape[2:]
    assert (heat.flatten(1).amax(1) == 1).all()
    assert heat.min() >= 0


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
    model, x = Small().train(), torch.randn(2, 3, 16, 16)
    state = copy.deepcopy(model.state_dict())
    handle = model.head.register_forward_hook(stopping(5))
    with pytest.raises(KeyboardInterrupt):
        made(name, model, batch_size=1)(x, CLASS)
    handle.remove()
    assert_untouched(model)
    assert_same_state(model, state)


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
    assert len(seen) > 3
    assert max(alive) <= 2
    assert all(ref() is None for ref in seen)
    held = [name for name, v in vars(cam).items() if isinstance(v, torch.Tensor) and v.numel() > 16 and v is not cam.outputs]
    assert not held


def test_noise_is_not_that_of_others():
    """It depends on the seed alone, and the global generator is left alone."""
    torch.manual_seed(0)
    model, x, state = Small().eval(), torch.randn(2, 3, 16, 16), torch.get_rng_state()
    first, again, other = (made("SSCAM", model, seed=seed)(x, CLASS) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)
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
        heat = ScoreCAM(model.eval(), "layer", **QUIET)(given, CLASS)
        assert torch.allclose(heat, expected, rtol=0, atol=1e-4), f"a {type(given).__name__}"
