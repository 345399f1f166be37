"""The methods on a transformer's attention, rewritten slowly in numpy from hooks; every way of attending; manners."""

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torchvision
from oracles import as_numpy, asked, assert_peak_in_box, assert_untouched, dog_and_cat, share_of_hits
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

    def of_own_score(pool):
        """Each layer's gradient of what the head says of that layer's tokens, read by `pool`."""
        scores = [model.head(model.norm(pool(z)))[0, category] for z in tokens]
        return [torch.autograd.grad(score, w, retain_graph=True)[0] for score, w in zip(scores, weights)]

    def first(tensors):
        return [as_numpy(t[0]) for t in tensors]

    q, k, v = qkv[-1][0].chunk(3, dim=-1)
    return dict(
        A=first(weights),
        G=first(gradients),
        own=first(of_own_score(lambda z: z.mean(1))),
        class_token=first(of_own_score(lambda z: z[:, 0])),
        w=as_numpy(output_gradient[0, 0]),
        q=as_numpy(q[0]),
        k=as_numpy(k),
        v=as_numpy(v),
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
    said = [sum(w[c] * value[c] for c in range(len(w))) for value in v[1:]]
    return np.maximum(0, loosened * said)


PAPERS = [
    *zip(METHODS, (slow_rollout, slow_relevance, slow_legrad, slow_eclip)),
    (partial(LeGrad, mean_tokens=False), slow_legrad_class_token),
]


@pytest.mark.parametrize("method, slow", PAPERS)
@pytest.mark.parametrize("seed", (0, 7))
def test_equals_the_paper_in_numpy(method, slow, seed):
    model, x, category = asked("vit", 2000 + seed)
    raw = slow(**hooked(model, x, category)).reshape(8, 8)
    cam = method(model)
    run = cam.run(x, category)
    run.size = (8, 8)  # the map before it is enlarged
    ours = cam.draw(run)[0].numpy()
    assert np.abs(ours - raw / raw.max()).max() < 1e-4


@pytest.mark.parametrize("name", BUILD)
def test_the_output_is_the_models_and_the_parts_fit(name):
    model, x = built(name)

    def pick(output):
        return (output["logits"] if isinstance(output, dict) else output)[:, 1].sum()

    r = record_attention(model, x, pick)
    with torch.no_grad():
        assert torch.allclose(pick(r.output), pick(model(x)), rtol=1e-4, atol=1e-5)
    assert len(r.layers) == 3
    for i, layer in enumerate(r.layers):
        assert layer.gradient.shape == layer.weights.shape, f"layer {i}"
        assert layer.gradient.any(), f"layer {i}"
        assert torch.allclose(layer.weights.sum(-1), torch.ones(()), atol=1e-5), f"layer {i}"
        assert torch.allclose(layer.weights @ layer.values, layer.output, atol=1e-5), f"layer {i}"
        logits = layer.queries @ layer.keys.mT
        scales = 1, layer.queries.shape[-1] ** -0.5  # some networks scale the queries themselves
        assert any(torch.allclose((logits * scale).softmax(-1), layer.weights, atol=1e-5) for scale in scales), f"layer {i}"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BUILD)
def test_batch_is_one_by_one(method, name):
    model, x = built(name)
    cam = method(model)
    together = cam(x, [0, 1, 2])
    assert together.shape == (3, 32, 32)
    assert together.dtype == torch.float32
    assert together.isfinite().all()
    alone = torch.cat([cam(x[[i]], i) for i in range(3)])
    assert torch.allclose(together, alone, atol=2e-4)


@pytest.mark.parametrize("name", ["timm", "eager"])
@pytest.mark.parametrize("method", METHODS)
def test_fused_is_not_fused(method, name):
    """The same weights, once with the fused kernel and once step by step."""
    torch.manual_seed(0)
    if name == "timm":
        fused = timm_vit().eval()
        plain = copy.deepcopy(fused)
        for block in plain.blocks:
            block.attn.fused_attn = False
    else:
        fused, plain = Eager(fused=True).eval(), Eager(fused=False).eval()
        plain.load_state_dict(fused.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(method(fused)(x, 1), method(plain)(x, 1), atol=2e-4)


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
    before = [set(vars(m)) for m in model.modules()]
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.allclose(method(model)(x, 1), expected, atol=1e-4), context.__name__
            assert not torch.is_grad_enabled(), context.__name__
    with pytest.raises(ZeroDivisionError):
        record_attention(model, x, lambda output: 1 / 0)
    assert before == [set(vars(m)) for m in model.modules()]
    assert_untouched(model)
    assert not any(p.requires_grad for p in model.parameters())
    assert not torch.overrides._get_current_function_mode_stack()
    assert torch.is_grad_enabled()


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
        assert r.layers[0].weights.shape == (2, 4, 6, 6), how


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
        assert torch.allclose(method(Frozen())(x, 1), method(model)(x, 1), atol=1e-4), method.__name__


@pytest.mark.filterwarnings("ignore:blank heat map")
@pytest.mark.parametrize("method", METHODS)
def test_two_threads_with_one_model(method):
    model = load("scenes-vit").train()
    xs = ((scenes(4, TEST + 2000).images - 0.5) / 0.5).split(1)
    alone = [method(model)(x, i) for i, x in enumerate(xs)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda i: method(model)(xs[i % 4], i % 4), range(16)))
    for i, heat in enumerate(together):
        assert torch.allclose(heat, alone[i % 4], atol=1e-4), f"call {i}"
    assert_untouched(model)


@pytest.mark.parametrize("method, least", [(AttentionRelevance, 0.68), (LeGrad, 0.80), (GradECLIP, 0.38)])
def test_peaks_lie_on_the_object_asked_for(method, least):
    assert share_of_hits(method(load("scenes-vit")), scenes(200, TEST + 2000)) >= least


def test_the_dog_and_the_cat(data):
    """Real weights, a real photo: relevance peaks on the animal asked for."""
    import demo_models

    model = demo_models.vit_tiny_imagenet(data / "models")
    x, classes, animals = dog_and_cat(data, model)
    for heat, (label, box) in zip(AttentionRelevance(model).many(x, classes)[0], animals):
        assert_peak_in_box(heat, label, box)


@pytest.mark.parametrize("build", [partial(load, "scenes-cnn"), torchvision.models.resnet18], ids=["scenes-cnn", "resnet18"])
@pytest.mark.parametrize("method", METHODS)
def test_a_network_without_attention(method, build):
    with pytest.raises(ValueError, match="no attention over all its tokens"):
        method(build())(torch.randn(1, 3, 64, 64), 1)


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
        assert method(model)(x, 1).isfinite().all(), method.__name__
