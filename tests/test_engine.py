"""record and replay over architectures, number formats and wrappers: the slow, plain form beside ours."""

import copy

import pytest
import timm
import torch
import torchvision
from tiny_models import draw_zeroed_weights
from torch import nn
from traces import assert_untouched, traces

from gradcam_nb.engine.record import record
from gradcam_nb.engine.replay import replay
from gradcam_nb.samples.networks import build

torch.manual_seed(0)
MODELS = {
    "resnet50": (lambda: torchvision.models.resnet50(num_classes=10), 64, ["layer2.1", "layer4.0.conv3", "layer4.2.bn3"]),
    "densenet121": (
        lambda: torchvision.models.densenet121(num_classes=10),
        64,
        ["features.denseblock3", "features.denseblock4.denselayer7.norm2"],
    ),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=10), 64, ["features.14.conv.0.1", "features"]),
    "googlenet": (lambda: torchvision.models.googlenet(num_classes=10, init_weights=False), 64, ["inception5a.branch2.0", "inception5b"]),
    "vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", depth=4, num_classes=10),
        224,
        ["blocks.1.attn.qkv", "blocks.2.mlp.fc1", "blocks.3.norm1"],
    ),
    "vit torchvision": (
        lambda: torchvision.models.VisionTransformer(64, 16, 3, 2, 48, 96, num_classes=10),
        64,
        ["encoder.layers.encoder_layer_1.ln_1"],
    ),
    "swin timm": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 2, 1), num_classes=10),
        224,
        ["layers.2.blocks.1.attn", "layers.3.blocks.0.norm2"],
    ),
    "swin torchvision": (lambda: torchvision.models.swin_t(num_classes=10), 64, ["features.5.3.attn", "features.7"]),
    "convnext": (lambda: timm.create_model("convnext_atto", num_classes=10), 64, ["stages.3.downsample.1", "stages.2"]),
    "u-net": (lambda: build("scenes-unet"), 64, ["encoder.1", "decoder.0"]),
}
CASES = [pytest.param(name, layer, id=f"{name} {layer}") for name, (_, _, layers) in MODELS.items() for layer in layers]
_made = {}


def made(name):
    """A model and a batch of two pictures, made once."""
    if name not in _made:
        make, side, _ = MODELS[name]
        torch.manual_seed(0)
        model = make().eval()
        draw_zeroed_weights(model)
        if name == "googlenet":  # its untrained convolutions let nothing through
            for p in model.parameters():
                if p.ndim == 4:
                    nn.init.kaiming_normal_(p)
        _made[name] = model, torch.randn(2, 3, side, side)
    return _made[name]


def total(output):
    return output.flatten(1)[:, 3].sum()


def whole_graph(model, module, x):
    """What a layer said and its gradient, from plain autograd through the whole model."""
    kept = []

    def keep(m, args, output):
        kept.append(output)
        output.retain_grad()
        return output.clone()  # an in-place layer behind it would forbid the backward pass

    with module.register_forward_hook(keep):
        output = model(x)
    total(output).backward()
    model.zero_grad(set_to_none=True)
    return kept[0].detach(), kept[0].grad, output.detach()


@pytest.mark.parametrize("name, layer", CASES)
def test_record_equals_the_whole_graph(name, layer):
    model, x = made(name)
    module = model.get_submodule(layer)
    said, gradient, output = whole_graph(model, module, x)
    before = traces(model)
    r = record(model, [module], x, total, replayable=True)
    assert_untouched(model, before)
    # Not bit for bit: without autograd, torchvision's transformer takes a fused kernel.
    torch.testing.assert_close(r.activations[module][0], said, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(r.output, output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(r.gradients[module][0], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item())


def with_changed(name, layer):
    """A model, its input and one of its layers; their record, and other activations of the layer."""
    model, x = made(name)
    module = model.get_submodule(layer)
    r = record(model, [module], x, replayable=True)
    a = r.activations[module][0]
    return model, x, module, r, a + a.std() * torch.randn(a.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name, layer", CASES)
def test_replay_equals_the_plain_run(name, layer):
    model, x, module, r, changed = with_changed(name, layer)
    with torch.no_grad(), module.register_forward_hook(lambda m, args, output: changed.clone()):
        plain = model(x)
    before, given = traces(model), changed.clone()
    replayed = replay(r, module, changed)
    assert (replayed - plain).abs().max() <= 1e-5 * plain.abs().max()
    assert (plain - r.output).abs().max() > 1e-4 * plain.abs().max(), "the change cannot be seen in the output"
    assert torch.equal(changed, given), "the activations that were given are changed"
    assert_untouched(model, before)


@pytest.mark.parametrize("name, layer", CASES)
def test_replay_of_many_variants_of_many_pictures(name, layer):
    """Rows are picture by picture, and each equals its own replay."""
    model, x = made(name)
    module = model.get_submodule(layer)
    r = record(model, [module], x, replayable=True)
    a = r.activations[module][0]
    parts = a.unflatten(0, (2, a.shape[0] // 2))  # windows: several rows a picture
    many = torch.stack([parts, parts * 0.5, parts * 2], 1).flatten(0, 2)
    replayed = replay(r, module, many).unflatten(0, (2, 3))
    near = dict(rtol=1e-4, atol=1e-5 * replayed.abs().max().item())
    for i, factor in enumerate((1, 0.5, 2)):
        alone = replay(r, module, a * factor)
        torch.testing.assert_close(replayed[:, i], alone, **near, msg=lambda told, f=factor: f"activations times {f}: {told}")


def outputs_of_parts(model, run):
    """What each convolution, linear layer and norm of the model computed while `run` ran: only calls that were really made."""
    parts = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm))]
    made_by = {}

    def watch(m, forward):
        def watched(*args, **kwargs):
            output = forward(*args, **kwargs)
            made_by.setdefault(m, []).append(output.clone())
            return output

        return watched

    for m in parts:
        m.forward = watch(m, m.forward)
    try:
        run()
    finally:
        for m in parts:
            del m.forward
    return made_by


@pytest.mark.parametrize("name, layer", CASES)
def test_replay_computes_nothing_that_does_not_depend_on_the_layer(name, layer):
    """Whatever part runs in a replay of changed activations gives something that it did not give in the plain run."""
    model, x, module, r, changed = with_changed(name, layer)
    with torch.no_grad():
        plain = outputs_of_parts(model, lambda: model(x))
    replayed = outputs_of_parts(model, lambda: replay(r, module, changed))
    assert len(replayed) < len(plain)
    for name, m in model.named_modules():
        for again in replayed.get(m, []):
            for first in plain[m]:
                same = again.shape == first.shape and torch.allclose(again, first, rtol=1e-5, atol=0)
                assert not same, f"{name} ran again for what it had given"


def test_a_user_hook_stays_and_is_heard():
    model, x = made("resnet50")
    heard = []
    handle = model.layer3.register_forward_hook(lambda m, a, o: heard.append(len(heard)))
    record(model, ["layer4"], x, total)
    hooks = len(model.layer3._forward_hooks)
    handle.remove()
    assert heard == [0], "heard once"
    assert hooks == 1, "and still there"


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize("wrap", [nn.DataParallel, compiled])
def test_wrapped_models(wrap):
    model, x = made("resnet50")
    expected = record(model, [model.layer4], x, total)
    r = record(wrap(model), [model.layer4], x, total)
    assert torch.equal(r.gradients[model.layer4][0], expected.gradients[model.layer4][0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["resnet50", "vit", "convnext"])
def test_number_formats(name, dtype):
    model, x = made(name)
    layer = MODELS[name][2][0]
    low = copy.deepcopy(model).to(dtype)
    module = low.get_submodule(layer)
    r = record(low, [module], x.to(dtype), total)
    said, gradient, _ = whole_graph(low, module, x.to(dtype))
    assert r.gradients[module][0].dtype == dtype
    near = dict(rtol=0.05, atol=0.02) if dtype != torch.float64 else dict(rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(r.activations[module][0], said, **near)
    top = gradient.abs().max().clamp(min=1e-30)
    torch.testing.assert_close(r.gradients[module][0].double() / top.double(), gradient.double() / top.double(), **near)


def test_the_part_before_the_layer_has_no_graph_and_the_graph_is_gone_after():
    """Live tensors with a graph: none before the layer, none when `record` has returned."""
    model, x = made("resnet50")
    has_graph, handles = {}, []

    def look(name):
        def hook(module, args, output):
            has_graph[name] = output.requires_grad

        return hook

    for name, module in model.named_children():
        handles.append(module.register_forward_hook(look(name)))
    r = record(model, ["layer4"], x, total)
    for handle in handles:
        handle.remove()
    for name in ("conv1", "bn1", "layer1", "layer2", "layer3"):
        assert not has_graph[name], f"{name} lies before the layer"
    assert has_graph["fc"]
    assert not r.output.requires_grad
    assert not r.activations[model.layer4][0].requires_grad
    assert r.gradients[model.layer4][0].grad_fn is None


class Stumbles(nn.Module):
    """Raises in its middle, when told so."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.stumbles = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), False

    def forward(self, x):
        h = self.a(x)
        if self.stumbles:
            raise KeyError("stumbled")
        return self.b(h.mean((2, 3)))


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_an_exception_inside_the_model_leaves_it_as_it_was(grad):
    model, x = Stumbles().train(), torch.randn(1, 3, 8, 8)
    untouched = traces(model)
    r = record(model, ["a"], x, total_of_two, replayable=True)
    model.stumbles = True
    with grad():
        before = torch.is_grad_enabled()
        with pytest.raises(KeyError, match="stumbled"):
            record(model, ["a"], x, total_of_two, replayable=True)
        with pytest.raises(KeyError, match="stumbled"):
            replay(r, model.a, r.activations[model.a][0])
        assert torch.is_grad_enabled() == before
    assert_untouched(model, untouched)


def total_of_two(output):
    return output[:, 1].sum()
