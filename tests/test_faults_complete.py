"""A run is complete before the model is left: nothing between a layer and the score is missing, and the model is as it was found."""

import copy
import logging

import pytest
import timm
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradcam_nb import (
    RISE,
    AblationCAM,
    AttentionRelevance,
    AttentionRollout,
    EigenCAM,
    FullGrad,
    GradCAM,
    GuidedBackpropReLUModel,
    HiResCAM,
    LayerCAM,
    OptiCAM,
    ReciproCAM,
    ScoreCAM,
    ShapleyCAM,
    suggest_layer,
)
from gradcam_nb.engine.record import record
from gradcam_nb.methods.deep_feature_factorization import DeepFeatureFactorization

QUIET = {
    ScoreCAM: dict(progress=False),
    AblationCAM: dict(progress=False),
    ReciproCAM: dict(progress=False),
    OptiCAM: dict(progress=False, iterations=2),
    RISE: dict(progress=False, n_masks=11),
}


def explained(method, net, layer, x, target=1):
    if method is GuidedBackpropReLUModel:
        return method(net)(x, target)
    return method(net, layer, **QUIET.get(method, {}))(x, target)


def same(method, one, other, layer, x):
    torch.testing.assert_close(explained(method, one, layer, x), explained(method, other, layer, x), rtol=0, atol=1e-3)


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same_state(net, before):
    return all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def small():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# Gradient checkpointing


@pytest.mark.parametrize("method", [GradCAM, HiResCAM, FullGrad, ShapleyCAM, GuidedBackpropReLUModel], ids=lambda m: m.__name__)
@pytest.mark.parametrize("training", [True, False])
def test_checkpointed_resnet(method, training):
    torch.manual_seed(0)
    x, plain = torch.randn(2, 3, 64, 64), timm.create_model("resnet18", num_classes=5).eval()
    net = copy.deepcopy(plain).train(training)
    net.set_grad_checkpointing(True)
    before, random = state(net), torch.get_rng_state()
    same(method, plain, net, None, x)
    assert same_state(net, before) and torch.equal(random, torch.get_rng_state()) and net.training == training


def test_a_container_whose_parts_are_called_one_by_one():
    net = timm.create_model("resnet18", num_classes=5)
    net.set_grad_checkpointing(True)
    with pytest.raises(ValueError, match=r"'layer2' never ran.*its last part|'layer2' never ran.*'layer2.1'"):
        GradCAM(net, "layer2")(torch.randn(1, 3, 64, 64), 1)


@pytest.mark.parametrize("method", [GradCAM, FullGrad, ShapleyCAM, AttentionRelevance, AttentionRollout], ids=lambda m: m.__name__)
def test_checkpointed_transformer(method):
    torch.manual_seed(0)
    x, plain = torch.randn(2, 3, 64, 64), timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=5, drop_path_rate=0.2)
    net = copy.deepcopy(plain).train()
    net.set_grad_checkpointing(True)
    same(method, plain.eval(), net, None, x)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("method", [GradCAM, FullGrad, AttentionRelevance], ids=lambda m: m.__name__)
def test_checkpointed_hugging_face(method, reentrant):
    from transformers import ViTConfig, ViTForImageClassification

    class Logits(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x).logits

    torch.manual_seed(0)
    sizes = dict(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=16, num_labels=5
    )
    plain = ViTForImageClassification(ViTConfig(**sizes)).eval()
    net = copy.deepcopy(plain)
    net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    same(method, Logits(plain), Logits(net.train()), None, torch.randn(2, 3, 64, 64))


class Counts(nn.Module):
    """A part that counts its calls, in a number and in a buffer, and is computed by `how`."""

    def __init__(self, how, noise=0.5):
        super().__init__()
        torch.manual_seed(1)
        self.noise = noise
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.b, self.h = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU()), nn.Linear(8, 5)
        self.register_buffer("seen", torch.zeros(()))
        self.how, self.calls = how, 0

    def part(self, f):
        self.calls += 1
        self.seen += 1
        return self.b(f) * (1 + self.noise * torch.rand(len(f), 8, 1, 1))

    def forward(self, x):
        return self.h(self.how(self.part, self.a(x)).mean((2, 3)))


def plainly(part, f):
    return part(f)


def reentrant(part, f):
    return checkpoint(part, f, use_reentrant=True)


def without_random_state(part, f):
    return checkpoint(part, f, use_reentrant=False, preserve_rng_state=False)


class OwnCheckpoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx, part, f):
        ctx.part = part
        ctx.save_for_backward(f)
        return part(f)

    @staticmethod
    def backward(ctx, gradient):
        f = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            output = ctx.part(f)
        return None, torch.autograd.grad(output, f, gradient)[0]


@pytest.mark.parametrize("how", [reentrant, without_random_state])
@pytest.mark.parametrize("layer", ["a", "b", "b.0"])
def test_a_part_is_computed_once(how, layer, x):
    gradients = []
    for net in (Counts(plainly), Counts(how).train()):
        torch.manual_seed(5)
        (found,) = record(net, [layer], x, lambda output: output[:, 1].sum()).gradients.values()
        gradients.append(found[0])
        assert (net.calls, net.seen) == (1, 0)  # a call was made; what the model remembers is as it was
    assert gradients[0].any()
    torch.testing.assert_close(*gradients)


def test_checkpointing_of_the_models_own_is_right_in_front_of_it_and_says_so_inside(x):
    def own(part, f):
        return OwnCheckpoint.apply(part, f)

    plain, net = Counts(plainly, noise=0).eval(), Counts(own, noise=0).train()
    before = state(net)
    for method in (GradCAM, HiResCAM, LayerCAM):
        same(method, plain, net, "a", x)
    same(GuidedBackpropReLUModel, plain, net, None, x)
    assert same_state(net, before)
    for method, layer in ((GradCAM, "b"), (HiResCAM, "b.0"), (FullGrad, None)):
        with pytest.raises(ValueError, match="layer: it lies inside an autograd function"):
            explained(method, net, layer, x)
    same(ScoreCAM, plain, net, "b", x)  # asks for no gradient


@pytest.mark.parametrize("how", [plainly, reentrant, without_random_state])
def test_second_derivatives_through_a_checkpoint(how, x):
    """Of a cubic score by hand, in training mode, after the model was left."""
    net = Counts(how).train()
    net.part = lambda f: f**3
    before = state(net)
    r = record(net, ["a"], x, lambda output: output[:, 1].sum(), create_graph=True)
    a, g = r.activations[net.a][0], r.gradients[net.a][0]
    weight = net.h.weight[1][None, :, None, None] / a[0, 0].numel()
    torch.testing.assert_close(g, 3 * weight * a**2)
    torch.testing.assert_close(torch.autograd.grad(g.sum(), a)[0], 6 * weight * a)
    assert same_state(net, before)


# Autograd switched off inside the model


def in_no_grad(net, x):
    with torch.no_grad():
        return net.body(x)


def in_the_middle(net, x):
    f = net.body[:3](x)
    with torch.no_grad():
        return net.body[3:](f)


@torch.no_grad()
def decorated(net, x):
    return net.body(x)


@torch.inference_mode()
def in_inference_mode(net, x):
    return net.body(x)


def by_function(net, x):
    torch.set_grad_enabled(False)
    f = net.body(x)
    torch.set_grad_enabled(True)
    return f


def never_on_again(net, x):
    torch.set_grad_enabled(False)
    return net.body(x)


def nested(net, x):
    with torch.no_grad():
        f = net.body[:2](x)
        with torch.enable_grad():
            f = net.body[2](f)
        f = net.body[3](f)
    with torch.inference_mode():
        f = net.body[4](f)
    return f.clone()


def beside(net, x):
    f = net.body[:3](x)
    with torch.no_grad():
        half = f / 2
    return net.body[3:](half + f / 2)


class Split(nn.Module):
    def __init__(self, how, trained=True):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
        self.how = how
        self.head.requires_grad_(trained)

    def forward(self, x):
        return self.head(self.how(self, x))


OFF = [in_no_grad, in_the_middle, decorated, in_inference_mode, by_function, never_on_again, nested, beside]
ASKED = [
    (FullGrad, None),
    (GuidedBackpropReLUModel, None),
    (HiResCAM, "body.2"),
    (GradCAM, "body.0"),
    (ShapleyCAM, "body.2"),
    (OptiCAM, "body.2"),
]


@pytest.mark.parametrize("how", OFF, ids=lambda how: how.__name__)
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("method, layer", ASKED, ids=lambda v: getattr(v, "__name__", v))
def test_autograd_off_inside(how, trained, method, layer, x):
    same(method, Split(lambda net, x: net.body(x)).eval(), Split(how, trained).eval(), layer, x)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_a_layer_in_front_against_autograd(x):
    net = Split(in_the_middle).eval()
    f = net.body[:3](x).detach().requires_grad_()
    (by_hand,) = torch.autograd.grad(net.head(net.body[3:](f))[:, 1].sum(), f)
    runs, handle = [], None
    handle = net.register_forward_hook(lambda *call: runs.append(1))
    r = record(net, ["body.2"], x, lambda output: output[:, 1].sum())
    handle.remove()
    torch.testing.assert_close(r.gradients[net.body[2]][0], by_hand)
    assert len(runs) == 1


def test_a_part_that_does_not_run_with_autograd_is_named(x):
    def counts(net, x):
        f = net.body(x)
        with torch.no_grad():
            share = float((f.numpy() > 0).mean())
        return f * share

    net = Split(counts).eval()
    f = net.body[:3](x).detach().requires_grad_()
    later = net.body[3:](f)
    (by_hand,) = torch.autograd.grad(net.head(later * float((later > 0).float().mean()))[:, 1].sum(), f)
    with pytest.warns(UserWarning, match="left out of the gradients.*numpy"):
        r = record(net, ["body.2"], x, lambda output: output[:, 1].sum())
    torch.testing.assert_close(r.gradients[net.body[2]][0], by_hand)


# Born in inference mode

EVERY = [
    (GradCAM, "0"),
    (FullGrad, None),
    (ShapleyCAM, "0"),
    (EigenCAM, "0"),
    (ScoreCAM, "0"),
    (AblationCAM, "0"),
    (ReciproCAM, "0"),
    (OptiCAM, "0"),
    (RISE, None),
    (GuidedBackpropReLUModel, None),
    (GradCAM, None),
]


@pytest.mark.parametrize("method, layer", EVERY, ids=lambda v: getattr(v, "__name__", v))
@pytest.mark.parametrize("born", [lambda: small(), lambda: small().double().float()], ids=["built", "moved"])
def test_born_in_inference_mode(method, layer, born, x):
    with torch.inference_mode():
        net = born()
    same(method, small(), net, layer, x)
    assert all(value.is_inference() for value in (*net.parameters(), *net.buffers()) if value.is_floating_point())


class Cached(nn.Module):
    def __init__(self, overwrites):
        super().__init__()
        torch.manual_seed(4)
        self.c, self.h, self.kept, self.overwrites = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5), None, overwrites

    def forward(self, x):
        f = self.c(x)
        if self.kept is None:
            self.kept = {"ramp": [torch.linspace(0, 1, f.shape[-1])]}
        if self.overwrites:
            self.kept["ramp"][0].mul_(1.0)
        return self.h((f * self.kept["ramp"][0]).relu().mean((2, 3)))


CACHED = [(GradCAM, "c"), (FullGrad, None), (ShapleyCAM, "c"), (ScoreCAM, "c"), (AblationCAM, "c"), (OptiCAM, "c")]


@pytest.mark.parametrize("method, layer", CACHED, ids=lambda v: getattr(v, "__name__", v))
@pytest.mark.parametrize("overwrites", [True, False])
def test_a_cache_from_inference_mode(method, layer, overwrites, x):
    fresh, used = Cached(overwrites).eval(), Cached(overwrites).eval()
    with torch.inference_mode():
        used(x)
    cache = used.kept["ramp"][0]
    same(method, fresh, used, layer, x)
    assert used.kept["ramp"][0] is cache and fresh.kept is None  # also after our own passes in inference mode


# Compiled


def compiled_in_place(net):
    net.compile(backend="eager")
    return net


def parts_in_place(net):
    for part in net[:2]:
        part.compile(backend="eager")
    return net


def compiled_parts(net):
    for i in (0, 1):
        net[i] = torch.compile(net[i], backend="eager")
    return net


def compiled_whole(net):
    return torch.compile(net, backend="eager")


def compiled_function(net):
    net[1].forward = torch.compile(net[1].forward, backend="eager")
    return net


@pytest.mark.parametrize(
    "how", [compiled_in_place, parts_in_place, compiled_parts, compiled_whole, compiled_function], ids=lambda f: f.__name__
)
def test_compiled(how, x):
    logging.disable(logging.CRITICAL)
    net = how(small())
    with torch.no_grad():
        net(x)  # has been used
    for method, layer in (*EVERY, (GradCAM, "1"), (GradCAM, "1.0"), (HiResCAM, "0.1")):
        same(method, small(), net, layer, x)
    logging.disable(logging.NOTSET)


def test_a_layer_of_a_compiled_part(x):
    net = compiled_parts(small())
    for layer, name in ((net[1], "1"), (net[1]._orig_mod, "1"), (net[1]._orig_mod[0], "1.0")):
        torch.testing.assert_close(GradCAM(net, layer)(x, 1), GradCAM(small(), name)(x, 1))
    assert suggest_layer(net, x).name == suggest_layer(small(), x).name


# The fast path of nn.TransformerEncoder


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.c, self.h = nn.Conv1d(6, 32, 3, padding=1), nn.Linear(32, 3)
        self.t = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), 2)

    def forward(self, x, mask):
        return self.h(self.t(self.c(x).mT, src_key_padding_mask=mask).mean(1))


PADDED = [
    (GradCAM, "t.layers.1"),
    (GradCAM, None),
    (GradCAM, "c"),
    (ScoreCAM, "c"),
    (AblationCAM, "c"),
    (EigenCAM, "t.layers.0"),
    (FullGrad, None),
]


@pytest.mark.parametrize("method, layer", PADDED, ids=lambda v: getattr(v, "__name__", v))
def test_padding_mask(method, layer):
    torch.manual_seed(0)
    given, net = (torch.randn(2, 6, 40), torch.arange(40) >= torch.tensor([[40], [25]])), Padded().eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        usual = explained(method, net, layer, given)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    torch.testing.assert_close(explained(method, net, layer, given), usual, rtol=0, atol=1e-4)
    assert torch.backends.mha.get_fastpath_enabled()


# Modules that several places share


def one_for_all(act, shared):
    return [act] * 3 if shared else [copy.deepcopy(act) for _ in range(3)]


class InARow(nn.Module):
    def __init__(self, shared):
        super().__init__()
        torch.manual_seed(6)
        self.convs = nn.ModuleList([nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1)])
        self.acts, self.h = nn.ModuleList(one_for_all(nn.ReLU(), shared)), nn.Linear(16, 5)

    def features(self, x):
        for conv, act in zip(self.convs, self.acts):
            x = act(conv(x))
        return self.h(x.mean((2, 3)))

    forward = features


class LastOnAVector(InARow):
    def __init__(self, shared):
        super().__init__(shared)
        self.last, self.end = self.acts[0] if shared else nn.ReLU(), nn.Linear(5, 5)

    def forward(self, x):
        return self.end(self.last(self.features(x)))


class SamePart(nn.Module):
    def __init__(self, shared):
        super().__init__()
        torch.manual_seed(8)
        self.stem, self.h = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5)
        self.parts = nn.ModuleList(one_for_all(nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.Tanh()), shared))

    def forward(self, x):
        x = self.stem(x)
        for part in self.parts:
            x = x + part(x)
        return self.h(x.mean((2, 3)))


class Block(nn.Module):
    def __init__(self, i, o, shared):
        super().__init__()
        self.c1, self.c2, self.r1 = nn.Conv2d(i, o, 3, 2, 1), nn.Conv2d(o, o, 3, 1, 1), nn.ReLU(inplace=True)
        self.r2 = self.r1 if shared else nn.ReLU(inplace=True)

    def forward(self, x):
        return self.r2(self.c2(self.r1(self.c1(x))))


def in_blocks(shared):
    torch.manual_seed(7)
    return nn.Sequential(Block(3, 8, shared), Block(8, 8, shared), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


SHARED = [GradCAM, HiResCAM, ShapleyCAM, EigenCAM, ScoreCAM, AblationCAM, ReciproCAM, OptiCAM, FullGrad]


@pytest.mark.parametrize("net", [InARow, LastOnAVector, SamePart, in_blocks], ids=lambda n: n.__name__)
@pytest.mark.parametrize("method", SHARED, ids=lambda m: m.__name__)
def test_shared_modules(net, method, x):
    same(method, net(False).eval(), net(True).eval(), None, x)


@pytest.mark.parametrize("net", [InARow, LastOnAVector, SamePart], ids=lambda n: n.__name__)
def test_a_shared_module_that_was_found_stays_the_call_that_was_found(net, x):
    own, shared = GradCAM(net(False).eval()), GradCAM(net(True).eval())
    for _ in range(2):
        torch.testing.assert_close(own(x, 1), shared(x, 1))
        torch.testing.assert_close(own(x, 1, aug_smooth=True), shared(x, 1, aug_smooth=True))
        torch.testing.assert_close(own.many(x, [0, 3]), shared.many(x, [0, 3]))
    assert len(shared.run(x, 1).record.activations[shared.target_layers[0]]) == 1
    concepts = [DeepFeatureFactorization(net(kind).eval()) for kind in (False, True)]
    for _ in range(2):
        torch.testing.assert_close(*(dff(x, 2)[1] for dff in concepts), rtol=0, atol=1e-3)


def test_a_shared_module_that_was_named_has_all_its_calls(x):
    net = InARow(True).eval()
    assert len(GradCAM(net, "acts.0").run(x, 1).record.activations[net.acts[0]]) == 3


# States


class Streaming(nn.Module):
    """A network that remembers its last state, in one of several ways."""

    def __init__(self, where):
        super().__init__()
        torch.manual_seed(9)
        self.c, self.g, self.h, self.where = nn.Conv2d(3, 8, 3, 2, 1), nn.GRUCell(8, 8), nn.Linear(8, 3), where
        self.state, self.frames = None, []
        if where in ("buffer", "in place"):
            self.register_buffer("kept", torch.zeros(2, 8))

    def forward(self, x):
        f = self.c(x).relu().mean((2, 3))
        if self.where == "attribute":
            f = self.state = self.g(f, self.state)
        elif self.where == "buffer":
            f = self.kept = self.g(f, self.kept)
        elif self.where == "in place":
            f = self.g(f, self.kept.clone())
            self.kept.copy_(f.detach())
        else:
            self.frames.append(f)
            f = sum(self.frames)
        return self.h(f)

    def memory(self):
        return [None if t is None else t.detach().clone() for t in (self.state, getattr(self, "kept", None), *self.frames)]


STATEFUL = [
    (GradCAM, None),
    (GradCAM, "c"),
    (FullGrad, None),
    (ShapleyCAM, "c"),
    (EigenCAM, None),
    (ScoreCAM, "c"),
    (AblationCAM, "c"),
    (ReciproCAM, "c"),
    (RISE, None),
    (GuidedBackpropReLUModel, None),
]


@pytest.mark.parametrize("method, layer", STATEFUL, ids=lambda v: getattr(v, "__name__", v))
@pytest.mark.parametrize("where", ["attribute", "buffer", "in place", "list"])
@pytest.mark.parametrize("used", [True, False])
def test_a_state_is_as_it_was(method, layer, where, used, x):
    """And every run begins with it: explaining twice gives the same twice."""
    net = Streaming(where).eval()
    if used:
        with torch.no_grad():
            net(x)
    before = net.memory()
    heats = [explained(method, net, layer, x) for _ in range(2)]
    torch.testing.assert_close(*heats, rtol=0, atol=1e-4)
    after = net.memory()
    assert len(before) == len(after) and all(a is b is None or torch.equal(a, b) for a, b in zip(before, after))


def test_a_state_against_autograd(x):
    net = Streaming("attribute").eval()
    with torch.no_grad():
        net(x.flip(0))
    f = net.c(x).detach().requires_grad_()
    hidden = net.g(f.relu().mean((2, 3)), net.state)
    (by_hand,) = torch.autograd.grad(net.h(hidden)[:, 1].sum(), f)
    for _ in range(2):
        torch.testing.assert_close(record(net, ["c"], x, lambda output: output[:, 1].sum()).gradients[net.c][0], by_hand)


def test_opticam_says_which_batch_size_it_needs(x):
    net = Streaming("buffer").eval()
    with pytest.raises(ValueError, match="pass batch_size=2"):
        explained(OptiCAM, net, "c", x)
    OptiCAM(net, "c", iterations=2, batch_size=2, progress=False)(x, 1)


def head():
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()


@pytest.mark.parametrize(
    "method", [GradCAM, ShapleyCAM, EigenCAM, ScoreCAM, AblationCAM, ReciproCAM, RISE, FullGrad], ids=lambda m: m.__name__
)
def test_exported_for_a_batch(method, x):
    program = torch.export.export(head(), (x,))
    same(method, head(), torch.export.unflatten(program), "1", x)


def test_exported_as_one_graph(x):
    net = torch.export.export(head(), (x,)).module()
    for method in (RISE, GuidedBackpropReLUModel):
        same(method, head(), net, None, x)
    with pytest.raises(ValueError, match="no layer of GraphModule"):
        GradCAM(net)(x, 1)
    with pytest.raises(ValueError, match="what the biases add"):
        FullGrad(net)(x, 1)


# Linear layers with children


class Adapted(nn.Linear):
    def __init__(self, i, o):
        super().__init__(i, o)
        self.drop, self.down, self.up = nn.Dropout(0.5), nn.Linear(i, 2, bias=False), nn.Linear(2, o, bias=False)

    def forward(self, x):
        return super().forward(x) + self.up(self.down(self.drop(x)))

    def merged(self):
        return self.weight + self.up.weight @ self.down.weight, self.bias


class Around(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.base_layer, self.down, self.up = nn.Linear(i, o), nn.Linear(i, 2, bias=False), nn.Linear(2, o, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))

    def merged(self):
        return self.base_layer.weight + self.up.weight @ self.down.weight, self.base_layer.bias


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrised(i, o):
    return nn.utils.parametrize.register_parametrization(nn.Linear(i, o), "weight", Doubled())


def normed(i, o):
    return nn.utils.parametrizations.weight_norm(nn.Linear(i, o))


class Tokens(nn.Module):
    def __init__(self, linear):
        super().__init__()
        torch.manual_seed(1)
        self.p, self.n1, self.n2 = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16), nn.LayerNorm(16)
        self.f1, self.f2, self.h = linear(16, 16), linear(16, 16), linear(16, 5)

    def forward(self, x):
        t = self.p(x).flatten(2).mT
        t = t + self.f1(self.n1(t)).relu()
        return self.h(self.f2(self.n2(t)).mean(1))


def merged(net):
    net = copy.deepcopy(net)
    for name in ("f1", "f2", "h"):
        layer = getattr(net, name)
        weight, bias = layer.merged() if hasattr(layer, "merged") else (layer.weight, layer.bias)
        plain = nn.Linear(*weight.shape[::-1])
        plain.weight.data, plain.bias.data = weight.detach().clone(), bias.detach().clone()
        setattr(net, name, plain)
    return net.eval()


@pytest.mark.parametrize("linear", [Adapted, Around, parametrised, normed], ids=lambda f: f.__name__)
@pytest.mark.parametrize("method, layer", [(GradCAM, None), (GradCAM, "f2"), (FullGrad, None), (ShapleyCAM, None), (AblationCAM, None)])
def test_linear_layers_with_children(linear, method, layer, x):
    net = Tokens(linear).eval()
    torch.testing.assert_close(net(x), merged(net)(x))
    assert suggest_layer(net, x).name == suggest_layer(merged(net), x).name
    same(method, merged(net), net, layer, x)
