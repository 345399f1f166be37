"""The methods on a transformer's attention, rewritten slowly in numpy from hooks; every way of attending; manners."""

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from gradcam_nb.engine.attention import record_attention
from gradcam_nb.methods.attention_relevance import AttentionRelevance
from gradcam_nb.methods.attention_rollout import AttentionRollout
from gradcam_nb.methods.grad_eclip import GradECLIP
from gradcam_nb.methods.legrad import LeGrad
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import TEST, scenes

METHODS = [AttentionRollout, AttentionRelevance, LeGrad, GradECLIP]


class Eager(nn.Module):
    """A Hugging Face-style encoder: separate query, key and value, an explicit softmax, outputs in tuples and a dict."""

    class Layer(nn.Module):
        def __init__(self, width, heads, fused):
            super().__init__()
            self.heads, self.fused = heads, fused
            self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
            self.before, self.after, self.mlp = nn.LayerNorm(width), nn.LayerNorm(width), nn.Linear(width, width)

        def forward(self, hidden):
            x = self.before(hidden)
            q, k, v = (part(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2) for part in (self.query, self.key, self.value))
            if self.fused:
                context = nn.functional.scaled_dot_product_attention(q, k, v)
            else:
                scores = torch.matmul(q, k.transpose(-1, -2)) * q.shape[-1] ** -0.5
                probabilities = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
                context = torch.matmul(nn.functional.dropout(probabilities, p=0.1, training=self.training), v)
            hidden = hidden + self.out(context.transpose(1, 2).flatten(2))
            return (hidden + self.mlp(self.after(hidden)).relu(),)

    def __init__(self, fused=False, width=24, heads=3, depth=3, classes=5):
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, width, 8, 8), nn.Parameter(torch.randn(1, 1, width))
        self.layer = nn.ModuleList(self.Layer(width, heads, fused) for _ in range(depth))
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, pixel_values):
        hidden = self.patches(pixel_values).flatten(2).mT
        hidden = torch.cat([self.token.expand(len(hidden), -1, -1), hidden], 1)
        for layer in self.layer:
            hidden = layer(hidden)[0]
        return {"logits": self.classifier(self.norm(hidden)[:, 0])}


def torchvision_vit():
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=24, mlp_dim=48, num_classes=5
    )
    nn.init.normal_(model.heads.head.weight)  # torchvision begins with zeros
    return model


def timm_vit(**how):
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, num_heads=2, depth=3, num_classes=5, **how)


BUILD = {
    "timm": timm_vit,
    "timm, mean pooled": lambda: timm_vit(class_token=False, global_pool="avg"),
    "timm, registers": lambda: timm_vit(reg_tokens=4),
    "torchvision": torchvision_vit,
    "eager": Eager,
    "eager, fused": lambda: Eager(fused=True),
}


def built(name):
    torch.manual_seed(0)
    return BUILD[name]().eval(), torch.randn(3, 3, 32, 32)


def hooked(model, x, category):
    """All that the papers need, from a copy of scenes-vit with its fused attention off, as float64 numpy."""
    model = copy.deepcopy(model).double()
    weights, qkv, tokens, outputs = [], [], [], []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda m, a, o: weights.append(o))
        block.attn.qkv.register_forward_hook(lambda m, a, o: qkv.append(o))
        block.attn.proj.register_forward_pre_hook(lambda m, a: outputs.append(a[0]))
        block.register_forward_hook(lambda m, a, o: tokens.append(o))
    score = model(x.double())[0, category]
    gradients = torch.autograd.grad(score, weights, retain_graph=True)
    (output_gradient,) = torch.autograd.grad(score, outputs[-1], retain_graph=True)
    read = {"own": lambda z: z.mean(1), "class_token": lambda z: z[:, 0]}  # what the head reads of a layer's tokens
    layers = {
        name: [torch.autograd.grad(model.head(model.norm(pool(z)))[0, category], w, retain_graph=True)[0] for z, w in zip(tokens, weights)]
        for name, pool in read.items()
    }
    q, k, v = qkv[-1][0].detach().chunk(3, dim=-1)
    numpy = lambda ts: [t[0].detach().numpy() for t in ts]
    return dict(
        A=numpy(weights),
        G=numpy(gradients),
        **{name: numpy(found) for name, found in layers.items()},
        w=output_gradient[0, 0].numpy(),
        q=q[0].numpy(),
        k=k.numpy(),
        v=v.numpy(),
    )


def slow_rollout(A, **_):
    tokens = A[0].shape[-1]
    joint = np.eye(tokens)
    for layer in A:
        mixed = sum(layer) / len(layer) + np.eye(tokens)
        joint = np.stack([row / row.sum() for row in mixed]) @ joint
    return joint[0, 1:]


def slow_relevance(A, G, **_):
    R = np.eye(A[0].shape[-1])
    for a, g in zip(A, G):
        R = R + sum(np.maximum(0, a[h] * g[h]) for h in range(len(a))) / len(a) @ R
    return R[0, 1:]


def slow_legrad(own, **_):
    total = np.zeros(own[0].shape[-1] - 1)
    for g in own:
        heads, queries, _ = g.shape
        for h in range(heads):
            for row in range(queries):
                total += np.maximum(0, g[h, row, 1:]) / (heads * queries)
    return total - total.min()


def slow_legrad_class_token(class_token, **_):
    return slow_legrad(class_token)


def slow_eclip(w, q, k, v, **_):
    cosine = np.array([q @ key / (np.linalg.norm(q) * np.linalg.norm(key)) for key in k[1:]])
    loosened = (cosine - cosine.min()) / (cosine.max() - cosine.min())
    return np.array([max(0, sum(w[c] * v[p + 1, c] * loosened[p] for c in range(len(w)))) for p in range(len(loosened))])


PAPERS = [
    *zip(METHODS, (slow_rollout, slow_relevance, slow_legrad, slow_eclip)),
    (partial(LeGrad, mean_tokens=False), slow_legrad_class_token),
]


@pytest.mark.parametrize("method, slow", PAPERS)
@pytest.mark.parametrize("seed", (0, 7))
def test_equals_the_paper_in_numpy(method, slow, seed):
    model, scene = load("scenes-vit"), scenes(1, TEST + 2000 + seed)
    x, category = (scene.images - 0.5) / 0.5, scene.labels[0].argmax().item()
    raw = slow(**hooked(model, x, category)).reshape(8, 8)
    cam = method(model)
    run = cam.run(x, category)
    run.size = (8, 8)  # the map before it is enlarged
    ours = cam.draw(run)[0].numpy()
    assert np.abs(ours - raw / raw.max()).max() < 1e-4


@pytest.mark.parametrize("name", BUILD)
def test_the_output_is_the_models_and_the_parts_fit(name):
    model, x = built(name)
    pick = lambda output: (output["logits"] if isinstance(output, dict) else output)[:, 1].sum()
    r = record_attention(model, x, pick)
    with torch.no_grad():
        assert torch.allclose(pick(r.output), pick(model(x)), rtol=1e-4, atol=1e-5)
    assert len(r.layers) == 3
    for layer in r.layers:
        assert layer.gradient.shape == layer.weights.shape and layer.gradient.any()
        assert torch.allclose(layer.weights.sum(-1), torch.ones(()), atol=1e-5)
        assert torch.allclose(layer.weights @ layer.values, layer.output, atol=1e-5)
        logits = layer.queries @ layer.keys.mT
        assert any(torch.allclose((logits * s).softmax(-1), layer.weights, atol=1e-5) for s in (1, layer.queries.shape[-1] ** -0.5))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BUILD)
def test_batch_is_one_by_one(method, name):
    model, x = built(name)
    cam = method(model)
    together = cam(x, [0, 1, 2])
    assert together.shape == (3, 32, 32) and together.dtype == torch.float32 and together.isfinite().all()
    alone = torch.cat([cam(x[[i]], i) for i in range(3)])
    assert torch.allclose(together, alone, atol=2e-4)


@pytest.mark.parametrize("method", METHODS)
def test_fused_is_not_fused(method):
    for fused, plain in ((timm_vit, None), (lambda: Eager(fused=True), lambda: Eager(fused=False))):
        torch.manual_seed(0)
        a = fused().eval()
        b = plain().eval() if plain else copy.deepcopy(a)
        b.load_state_dict(a.state_dict())
        for block in getattr(b, "blocks", []):
            block.attn.fused_attn = False
        x = torch.randn(2, 3, 32, 32)
        assert torch.allclose(method(a)(x, 1), method(b)(x, 1), atol=2e-4)


@pytest.mark.parametrize("method", METHODS)
def test_one_network_in_two_libraries(method):
    """torchvision's multi-head attention and timm's own, with the same weights, have the same maps."""
    peer, x = built("torchvision")
    ours = timm_vit(mlp_ratio=2).eval()
    names = {
        "encoder.pos_embedding": "pos_embed",
        "class_token": "cls_token",
        "conv_proj": "patch_embed.proj",
        "encoder.ln": "norm",
        "heads.head": "head",
        "encoder.layers.encoder_layer_": "blocks.",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "self_attention.in_proj_": "attn.qkv.",
        "self_attention.out_proj": "attn.proj",
        "mlp.0": "mlp.fc1",
        "mlp.3": "mlp.fc2",
    }
    weights = {}
    for name, tensor in peer.state_dict().items():
        for theirs, here in names.items():
            name = name.replace(theirs, here)
        weights[name] = tensor
    ours.load_state_dict(weights)
    assert torch.allclose(ours(x), peer(x), atol=1e-4)
    assert torch.allclose(method(ours)(x, [0, 1, 2]), method(peer)(x, [0, 1, 2]), atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BUILD)
def test_the_model_is_as_it_was(method, name):
    model, x = built(name)
    expected = method(model)(x, 1)
    model.train().requires_grad_(False)
    before = [(m.training, dict(vars(m)).keys()) for m in model.modules()]
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.allclose(method(model)(x, 1), expected, atol=1e-4)
            assert not torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError):
        record_attention(model, x, lambda output: 1 / 0)
    assert before == [(m.training, dict(vars(m)).keys()) for m in model.modules()]
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    assert not torch.overrides._get_current_function_mode_stack() and torch.is_grad_enabled()


def test_causal_masked_and_grouped_attention():
    """What the fused kernel can be asked for, computed in two steps."""

    class Kernel(nn.Module):
        def __init__(self, **how):
            super().__init__()
            self.how = how

        def forward(self, x):
            groups = 2 if self.how.get("enable_gqa") else 4
            return nn.functional.scaled_dot_product_attention(x, x[:, :groups], x[:, :groups] * 2, **self.how)

    x = torch.randn(2, 4, 6, 8)
    hidden = torch.rand(6, 6) > 0.3
    hidden.fill_diagonal_(True)
    for how in (dict(is_causal=True), dict(attn_mask=hidden), dict(attn_mask=torch.randn(6, 6)), dict(scale=0.1), dict(enable_gqa=True)):
        model = Kernel(**how)
        r = record_attention(model, x)
        assert torch.allclose(r.output, model(x), atol=1e-5), how
        assert r.layers[0].weights.shape == (2, 4, 6, 6)


def test_autograd_off_inside_the_model():
    model, x = built("eager")

    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            with torch.no_grad():
                return self.inner(x)

    for method in METHODS:
        assert torch.allclose(method(Frozen())(x, 1), method(model)(x, 1), atol=1e-4)


@pytest.mark.filterwarnings("ignore:blank heat map")
@pytest.mark.parametrize("method", METHODS)
def test_two_threads_with_one_model(method):
    model = load("scenes-vit").train()
    xs = ((scenes(4, TEST + 2000).images - 0.5) / 0.5).split(1)
    alone = [method(model)(x, i) for i, x in enumerate(xs)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda i: method(model)(xs[i % 4], i % 4), range(16)))
    assert all(torch.allclose(heat, alone[i % 4], atol=1e-4) for i, heat in enumerate(together))
    assert all(m.training and "forward" not in vars(m) for m in model.modules())


@pytest.mark.filterwarnings("ignore:blank heat map")
@pytest.mark.parametrize("method, least", [(AttentionRelevance, 0.68), (LeGrad, 0.80), (GradECLIP, 0.38)])
def test_peaks_lie_on_the_object_asked_for(method, least):
    model, batch = load("scenes-vit"), scenes(200, TEST + 2000)
    x, hits = (batch.images - 0.5) / 0.5, []
    picture, category = batch.labels.nonzero(as_tuple=True)
    for rows in torch.arange(len(picture)).split(64):
        peaks = method(model)(x[picture[rows]], category[rows]).flatten(1).argmax(1)
        hits.append(batch.masks[picture[rows], category[rows]].flatten(1)[torch.arange(len(rows)), peaks])
    assert torch.cat(hits).float().mean() >= least


def test_the_dog_and_the_cat(data):
    """Real weights, a real photo: relevance peaks on the animal asked for."""
    import json
    from dataclasses import replace

    import demo_models

    from gradcam_nb.imaging.preprocess import preprocess_for

    model, photo = demo_models.vit_tiny_imagenet(data / "models"), data / "images/misc/both.png"
    boxes = {b["label"]: b["box"] for b in json.loads((data / "annotations/handdrawn_boxes.json").read_text())["boxes"]["misc/both.png"]}
    x = replace(preprocess_for(model), resize="squash", crop_pct=1.0)(photo)
    for heat, label in zip(AttentionRelevance(model).many(x, [243, 281])[0], ("dog", "cat")):
        y, across = divmod(heat.argmax().item(), heat.shape[1])
        left, top, right, bottom = boxes[label]
        assert left <= across <= right and top <= y <= bottom


@pytest.mark.parametrize("method", METHODS)
def test_a_network_without_attention(method):
    for model in (load("scenes-cnn"), torchvision.models.resnet18()):
        with pytest.raises(ValueError, match="no attention over all its tokens"):
            method(model)(torch.randn(1, 3, 64, 64), 1)


def test_attention_over_channels_is_none():
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="no attention over all its tokens"):
        record_attention(timm.create_model("xcit_nano_12_p16_224", num_classes=5), torch.randn(1, 3, 224, 224))


@pytest.mark.filterwarnings("ignore:blank heat map")
@pytest.mark.parametrize("name", ("eva02_tiny_patch14_224", "cait_xxs24_224", "vit_base_patch16_siglip_224"))
def test_other_families(name):
    """Rotary positions, heads that talk to each other, a pooling head: found, and the output is the model's."""
    torch.manual_seed(0)
    model, x = timm.create_model(name, num_classes=5).eval(), torch.randn(1, 3, 224, 224)
    r = record_attention(model, x)
    with torch.no_grad():
        assert torch.allclose(r.output, model(x), atol=1e-3)
    for method in METHODS:
        assert method(model)(x, 1).isfinite().all()
