"""Every method against the libraries that have it, in one table: where grad-cam, torchcam or captum compute the same, the maps agree.

Where one of them computes something else, nothing is compared: the method's page lists the difference, with its size.
"""

import copy
import functools
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torchvision
from oracles_libraries import correlation, correlations, with_photos
from tiny_models import vgg11

from gradcam_nb import (
    CAM,
    FEM,
    KPCA_CAM,
    EigenCAM,
    EigenGradCAM,
    FinerCAM,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    GuidedBackpropReLUModel,
    GuidedGradCAM,
    HiResCAM,
    LayerCAM,
    LeGrad,
    RefineCAM,
    SegEigenCAM,
    SmoothGradCAMPlusPlus,
    XGradCAM,
    record,
    vit_reshape_transform,
)
from gradcam_nb.core.heatmap import resize
from gradcam_nb.methods.deep_feature_factorization import dff
from gradcam_nb.methods.sobel import sobel_cam

LOUD = 1e6  # times the score: the constants which others add to its gradient's powers then do not count


def twin(weights):
    """timm's ViT-tiny as torchvision builds it."""
    model = torchvision.models.VisionTransformer(image_size=224, patch_size=16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768)
    names = {
        "pos_embed": "encoder.pos_embedding",
        "cls_token": "class_token",
        "patch_embed.proj": "conv_proj",
        "norm.": "encoder.ln.",
        "head.": "heads.head.",
        "blocks.": "encoder.layers.encoder_layer_",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attn.qkv.": "self_attention.in_proj_",
        "attn.proj": "self_attention.out_proj",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.3",
    }
    renamed = {}
    for name, tensor in weights.items():
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    model.load_state_dict(renamed)
    return model.eval()


def vit():
    return timm.create_model("vit_tiny_patch16_224")


def torchvision_vit():
    return twin(vit().state_dict())


VIT_LAYERS = ("blocks.11.norm1", "blocks.8.norm1", vit_reshape_transform)
TWIN_LAYERS = ("encoder.layers.encoder_layer_11.ln_1", "encoder.layers.encoder_layer_8.ln_1", vit_reshape_transform)
NETWORKS = {  # how it is built (real weights: by its name), the layer and one in front of it, how tokens are laid out
    "resnet18": (torchvision.models.resnet18, "layer4", "layer3", None),
    "resnet18, inner": (torchvision.models.resnet18, "layer3", "layer2", None),
    "vgg11": (vgg11, "features.19", "features.14", None),
    "vit": (vit, *VIT_LAYERS),
    "torchvision vit": (torchvision_vit, *TWIN_LAYERS),
    "mobilenet_v2, real": ("mobilenet_v2_imagenet", "features.18", "features.13", None),
    "squeezenet1_1, real": ("squeezenet1_1_imagenet", "features.12", "features.7", None),
    "vit, real": ("vit_tiny_imagenet", *VIT_LAYERS),
    "torchvision vit, real": ("vit_tiny_imagenet", *TWIN_LAYERS),
}
# Behind the layer a global average and one linear layer: the gradient is the same at all places.
POOLED = ["resnet18", "mobilenet_v2, real"]
CNNS = [*POOLED, "vgg11", "squeezenet1_1, real"]  # the layer gives nothing negative
VITS = ["vit", "vit, real"]
EVERY = [*CNNS, *VITS]
INNER = ["resnet18, inner"]  # where a ResNet's gradient differs from place to place
TWINS = ["torchvision vit", "torchvision vit, real"]


@functools.lru_cache(1)
def case(name, data):
    build, layer, front, reshape = NETWORKS[name]
    torch.manual_seed(0)
    if callable(build):
        model, x, classes = build().eval(), torch.randn(2, 3, 224, 224), [5, 7]
    else:
        model, x, classes = with_photos(build, data)
        if name.startswith("torchvision"):
            model = twin(model.state_dict())
    # The others' backward passes go through all that learns: let them end in front of the layers asked about.
    model.requires_grad_(False).get_submodule(front).register_forward_hook(lambda module, given, output: output.requires_grad_())
    network = dict(model=model, reshape=reshape, x=x, classes=classes)
    return SimpleNamespace(layer=layer, module=model.get_submodule(layer), both=[front, layer], **network)


def scores(n, loud=1):
    return [lambda output, c=c: loud * output[c] for c in n.classes]


@functools.cache  # what stands in two rows is one function, and its maps are drawn once
def ours(method, *, loud=None, **options):
    return lambda n: method(n.model, n.layer, **options)(n.x, n.classes if loud is None else scores(n, loud))


def turned_over(method):
    return type(method.__name__, (method,), {"get_cam_image": lambda self, *asked: -method.get_cam_image(self, *asked)})


def grad_cam(name, *, loud=1, flip=False, both=False, untold=False):
    def maps(n):
        package = pytest.importorskip("pytorch_grad_cam")
        peer, base = getattr(package, name), {"base_method": package.GradCAM} if both else {}
        if flip:
            peer = turned_over(peer)
        layers = [n.model.get_submodule(layer) for layer in (n.both if both else [n.layer])]
        targets = None if untold else scores(n, loud)
        return torch.as_tensor(peer(n.model, layers, n.reshape, **base)(n.x, targets))

    return maps


def either_way(name):
    """Their component and the same turned over: they leave its sign to the decomposition."""
    return lambda n: torch.stack([grad_cam(name, flip=flip)(n) for flip in (False, True)])


def refined_here(n):
    return RefineCAM(n.model, n.both, base_method=GradCAM)(n.x, n.classes)


def guided_here(n):
    return GuidedBackpropReLUModel(n.model, relu_only=True)(n.x, n.classes)


def guided(n):
    peer = pytest.importorskip("pytorch_grad_cam").GuidedBackpropReLUModel(copy.deepcopy(n.model))
    return torch.stack([torch.as_tensor(peer(x[None].clone(), c)).permute(2, 0, 1) for x, c in zip(n.x, n.classes)])


def torchcam(name, *, loud=None, both=False, how=None, **options):
    """Their raw map, resized as ours. LeGrad looks at all blocks and takes no reshape transform."""

    def maps(n):
        package = pytest.importorskip("torchcam.methods")
        laid = {"reshape_transform": n.reshape} if n.reshape and name != "LeGrad" else {}
        base = {"base_method": package.GradCAM} if both else {}
        layers = n.both if both else n.layer
        if name == "LeGrad":
            layers = list(n.model.encoder.layers)
        with getattr(package, name)(n.model, layers, **laid, **base, **options) as extractor:
            asked = dict(class_idx=n.classes) if loud is None else dict(targets=scores(n, loud))
            (raw,) = extractor(scores=n.model(n.x), normalized=False, **asked, **(how or {}))
        return resize(raw.detach().clamp(min=0), n.x.shape[2:])

    return maps


def captum(name, *, layer=True, enlarge=False, **how):
    """Their attribution; of a layer: its channels' sum, positive and resized as ours."""

    def maps(n):
        peer = pytest.importorskip("captum.attr")
        found = getattr(peer, name)(n.model, *[n.module] * layer).attribute(n.x.clone(), n.classes, **how)
        return resize(found.detach().sum(1).clamp(min=0), n.x.shape[2:]) if enlarge else found

    return maps


def lifted(n):
    """The layer's activations, nothing negative: what both factorize as it is."""
    a = record(n.model, [n.layer], n.x).activations[n.module][0].detach()
    a = n.reshape(a) if n.reshape else a
    return a - a.amin((0, 2, 3), keepdim=True)


def one_concept(n):
    package = pytest.importorskip("pytorch_grad_cam.feature_factorization.deep_feature_factorization")
    return torch.as_tensor(package.dff(lifted(n).numpy(), 1)[1])


TABLE = {  # ours, theirs, the networks on which they compute the same thing
    "GradCAM, grad-cam": (ours(GradCAM), grad_cam("GradCAM"), EVERY + INNER),
    "GradCAM, torchcam": (ours(GradCAM), torchcam("GradCAM"), EVERY),
    "GradCAM, captum": (ours(GradCAM), captum("LayerGradCam", enlarge=True), CNNS),
    "HiResCAM, grad-cam": (ours(HiResCAM), grad_cam("HiResCAM"), EVERY + INNER),
    "HiResCAM, captum": (ours(HiResCAM), captum("LayerGradientXActivation", enlarge=True), CNNS + INNER),
    "GradCAMElementWise, grad-cam": (ours(GradCAMElementWise), grad_cam("GradCAMElementWise"), EVERY + INNER),
    "LayerCAM, grad-cam": (ours(LayerCAM), grad_cam("LayerCAM"), EVERY + INNER),
    "LayerCAM, torchcam": (ours(LayerCAM), torchcam("LayerCAM"), EVERY + INNER),
    "XGradCAM, grad-cam": (ours(XGradCAM), grad_cam("XGradCAM"), CNNS + INNER),
    "XGradCAM, torchcam": (ours(XGradCAM), torchcam("XGradCAM"), CNNS + INNER),
    "GradCAMPlusPlus, grad-cam": (ours(GradCAMPlusPlus, loud=LOUD), grad_cam("GradCAMPlusPlus", loud=LOUD), EVERY + INNER),
    "SmoothGradCAMPlusPlus, torchcam": (
        ours(SmoothGradCAMPlusPlus, loud=LOUD, samples=2),
        torchcam("SmoothGradCAMpp", loud=LOUD, num_samples=2, std=1e-9),
        POOLED,
    ),
    "CAM, torchcam": (ours(CAM), torchcam("CAM"), POOLED),
    "EigenCAM, grad-cam": (ours(EigenCAM), either_way("EigenCAM"), EVERY),
    "EigenGradCAM, grad-cam": (ours(EigenGradCAM), either_way("EigenGradCAM"), EVERY),
    "KPCA_CAM, grad-cam": (ours(KPCA_CAM), either_way("KPCA_CAM"), EVERY),
    "SegEigenCAM, grad-cam": (ours(SegEigenCAM), grad_cam("SegEigenCAM"), EVERY),
    "FEM, grad-cam": (ours(FEM, form="share"), grad_cam("FEM"), EVERY),
    "FinerCAM, grad-cam": (
        lambda n: FinerCAM(n.model, n.layer, weighting="softmax", gamma=1)(n.x),
        grad_cam("FinerCAM", untold=True),
        EVERY,
    ),
    "FinerCAM, torchcam": (ours(FinerCAM), torchcam("FinerCAM"), EVERY),
    "RefineCAM, grad-cam": (refined_here, grad_cam("RefineCAM", both=True), EVERY),
    "RefineCAM, torchcam": (refined_here, torchcam("RefineCAM", both=True, how={"target_shape": (224, 224)}), EVERY),
    "GuidedBackprop, grad-cam": (guided_here, guided, EVERY),
    "GuidedBackprop, captum": (guided_here, captum("GuidedBackprop", layer=False), EVERY),
    "GuidedGradCAM, grad-cam": (ours(GuidedGradCAM, relu_only=True), lambda n: grad_cam("GradCAM")(n)[:, None] * guided(n), VITS),
    "GuidedGradCAM, captum": (ours(GuidedGradCAM, relu_only=True), captum("GuidedGradCam", interpolate_mode="bilinear"), CNNS),
    "LeGrad, torchcam": (ours(LeGrad, mean_tokens=True), torchcam("LeGrad"), TWINS),
    "one concept, grad-cam": (lambda n: dff(lifted(n), 1)[1], one_concept, EVERY),
}


@functools.lru_cache(32)
def drawn(here, name, data):
    return here(case(name, data))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row, name", [(row, name) for name in NETWORKS for row in TABLE if name in TABLE[row][2]])
def test_agrees(row, name, request):
    data = request.getfixturevalue("data") if isinstance(NETWORKS[name][0], str) else None
    here, there, _ = TABLE[row]
    a, b = drawn(here, name, data), there(case(name, data)).detach()
    ways = b if b.ndim > a.ndim else b[None]
    for picture, found in enumerate(zip(*(correlations(a, way) for way in ways))):
        assert max(found) >= 0.999, picture


def test_sobel_agrees_with_grad_cam():
    """On a faint grey picture: theirs works in whole numbers and cuts off at 255."""
    picture = np.random.default_rng(0).integers(0, 32, (40, 50, 1), np.uint8).repeat(3, 2)
    theirs = pytest.importorskip("pytorch_grad_cam.sobel_cam").sobel_cam(picture)
    ours = sobel_cam(torch.from_numpy(picture).permute(2, 0, 1)[None])[0]
    assert correlation(ours, theirs) >= 0.999
