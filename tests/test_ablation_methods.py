"""AblationCAM and ReciproCAM against the slow, obvious form: a hook, and a full pass for each channel or place."""

import copy
import itertools
import warnings

import pytest
import timm
import torch
import torchvision
from oracles import assert_same, assert_same_state, assert_untouched, correlation, flops, raw_maps
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import box_iou

from gradcam_nb.methods.ablationcam import AblationCAM
from gradcam_nb.methods.reciprocam import ReciproCAM
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import TEST, scenes

BOTH = [AblationCAM, ReciproCAM]
FRONT, LAST, TOKENS = "channels in front", "channels last", "tokens behind one of the class"


def lively(model, x):
    """Random weights and statistics of such a size that a layer matters for the score: else there is only rounding to compare."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0, (2 / p[0].numel()) ** 0.5)
        model.train()(x)
    return model.eval()


def networks():
    """Small, with random weights: the model, the layer, the size of the picture, how the layer lays its channels."""
    torch.manual_seed(0)
    return {
        "ResNet": (ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10), "layer1", 48, FRONT),
        "DenseNet": (torchvision.models.DenseNet(8, (2, 2), 16, num_classes=10), "features.norm5", 64, FRONT),
        "MobileNetV2": (torchvision.models.MobileNetV2(num_classes=10, width_mult=0.25), "features.14", 64, FRONT),
        "ViT": (timm.models.VisionTransformer(32, 8, num_classes=10, embed_dim=24, depth=3, num_heads=3), "blocks.1.norm2", 32, TOKENS),
        "Swin": (
            timm.models.SwinTransformer(64, 4, num_classes=10, embed_dim=12, depths=(1, 1), num_heads=(2, 2), window_size=4),
            "layers.0",
            64,
            LAST,
        ),
    }


@pytest.fixture(scope="module")
def zoo():
    return {
        name: (lively(model, torch.randn(8, 3, size, size)), layer, size, layout)
        for name, (model, layer, size, layout) in networks().items()
    }


@pytest.fixture(scope="module")
def seen():
    batch = scenes(3, TEST + 2000)
    return load("scenes-cnn"), batch.images * 2 - 1, batch.labels.argmax(1)


def on_the_map(output, layout):
    """A view of the layer's output as `B × C × H × W`: writing into it writes into the output."""
    if layout == TOKENS:
        tokens = output[:, 1:]
        side = int(tokens.shape[1] ** 0.5)
        return tokens.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return output.permute(0, 3, 1, 2) if layout == LAST else output


def replaced(model, layer, x, change):
    """A full pass in which the layer gives what `change` makes of its output."""
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: change(output))
    with torch.no_grad():
        answer = model(x)
    handle.remove()
    return answer


def hooked(model, layer, layout, x, change):
    """A full pass in which what the layer gives is changed; what it was, on the map; the output."""
    was = []

    def on_map(output):
        output = output.clone()
        laid = on_the_map(output, layout)
        was.append(laid.clone())
        change(laid)
        return output

    answer = replaced(model, layer, x, on_map)
    return was[0], answer


FILLS = {"zero": lambda a: 0, "mean": lambda a: a.mean(), "min": lambda a: a.min()}


def obvious_ablation(model, layer, layout, x, category, fill="zero"):
    """The raw map of one picture."""
    A, y = hooked(model, layer, layout, x, lambda a: None)
    y, raw = y[0, category], 0

    def without(k):
        def off(a):
            a[0, k] = FILLS[fill](a[0, k])

        return hooked(model, layer, layout, x, off)[1][0, category]

    for k in range(A.shape[1]):
        raw = raw + (y - without(k)) / abs(y) * A[0, k]
    return raw


def left_alone(a, i, j, gaussian):
    """What a layer gave at one place, and, if so wished, less of what is around it; zero elsewhere."""
    kept = torch.zeros_like(a)
    for di, dj in itertools.product((-1, 0, 1), repeat=2):
        if 0 <= i + di < a.shape[2] and 0 <= j + dj < a.shape[3]:
            share = {0: 1 / 4, 1: 1 / 8, 2: 1 / 16}[abs(di) + abs(dj)] if gaussian else float(di == dj == 0)
            kept[:, :, i + di, j + dj] = share * a[:, :, i + di, j + dj]
    return kept


def obvious_places(model, layer, layout, x, category, gaussian=True, form="probability"):
    """The raw map of one picture."""
    A, _ = hooked(model, layer, layout, x, lambda a: None)
    raw = torch.zeros_like(A[0, 0])

    def score(i, j):
        def alone(a):
            a[:] = left_alone(a, i, j, gaussian)

        answer = hooked(model, layer, layout, x, alone)[1][0]
        return (answer.softmax(0) if form == "probability" else answer)[category]

    for place in itertools.product(*map(range, raw.shape)):
        raw[place] = score(*place)
    return raw - raw.min()


def assert_as_obvious(kind, obvious, network, **how):
    """The slow form in double precision."""
    model, layer, size, layout = network
    torch.manual_seed(1)
    x, categories = torch.randn(2, 3, size, size), [7, 2]
    (ours,) = raw_maps(kind(model, layer, progress=False, batch_size=13, **how), x, categories)
    slow = copy.deepcopy(model).double()
    for i, category in enumerate(categories):
        expected = obvious(slow, layer, layout, x[[i]].double(), category, **how)
        assert_same(ours[i], expected, f"picture {i}")


@pytest.mark.parametrize("name", ["ResNet", "DenseNet", "MobileNetV2", "ViT", "Swin"])
def test_ablation_is_the_obvious_form(zoo, name):
    assert_as_obvious(AblationCAM, obvious_ablation, zoo[name])


@pytest.mark.parametrize("fill", ["mean", "min"])
@pytest.mark.parametrize("name", ["DenseNet", "ViT"])
def test_ablation_with_other_fills(zoo, name, fill):
    assert_as_obvious(AblationCAM, obvious_ablation, zoo[name], fill=fill)


@pytest.mark.parametrize("name", ["ResNet", "DenseNet", "MobileNetV2", "ViT", "Swin"])
def test_places_are_the_obvious_form(zoo, name):
    assert_as_obvious(ReciproCAM, obvious_places, zoo[name])


@pytest.mark.parametrize("how", [dict(gaussian=False), dict(form="score"), dict(gaussian=False, form="score")])
@pytest.mark.parametrize("name", ["MobileNetV2", "ViT"])
def test_other_forms_of_places(zoo, name, how):
    assert_as_obvious(ReciproCAM, obvious_places, zoo[name], **how)


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.5, 0.6, 1.0])
def test_ratio_takes_each_channel_once(seen, ratio):
    model, x, classes = seen
    cam = AblationCAM(model, "layer4", ratio=ratio, progress=False)
    run = cam.run(x, classes)
    (call,) = run.calls(model.layer4)
    whole = AblationCAM(model, "layer4", progress=False, batch_size=cam.batch_size)
    weights, every = (c.get_channel_weights(run, call, [run.targets])[0] for c in (cam, whole))
    loudest = call.activations.abs().mean((2, 3)).argsort(descending=True)[:, : max(1, round(ratio * 96))]
    assert loudest.shape[1] == len(set(loudest[0].tolist()))
    left_out = torch.ones_like(weights, dtype=torch.bool).scatter(1, loudest, False)
    assert not weights[left_out].any()
    assert torch.allclose(weights[~left_out], every[~left_out], rtol=1e-3, atol=1e-6)


def counted(module):
    """How many rows each call of a module is given, as a list that grows; and the hook that makes it grow."""
    rows = []
    return rows, module.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))


def test_one_pass_for_each_chosen_channel(seen):
    model, x, classes = seen
    rows, handle = counted(model.fc)
    AblationCAM(model, "layer4", ratio=0.6, batch_size=16, progress=False)(x, classes)
    handle.remove()
    assert sum(rows) == 3 + 3 * round(0.6 * 96)
    assert max(rows) == 16


@pytest.mark.parametrize("kind", BOTH)
def test_batch_is_one_by_one(seen, kind):
    model, x, classes = seen
    cam = kind(model, "layer4", progress=False)
    heat = cam(x, classes)
    assert torch.allclose(torch.cat([cam(x[[i]], classes[i]) for i in range(3)]), heat, atol=1e-4)
    assert torch.allclose(kind(model, "layer4", batch_size=7, progress=False)(x, classes), heat, atol=1e-4)
    order = [2, 0, 1]
    assert torch.allclose(cam(x[order], classes[order]), heat[order], atol=1e-4)


@pytest.mark.parametrize("kind", BOTH)
def test_many_targets_from_the_same_passes(seen, kind):
    model, x, classes = seen
    rows, handle = counted(model.fc)
    cam = kind(model, "layer4", progress=False, batch_size=32)
    wanted = [*classes.tolist(), lambda output: output[:4].sum()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        many = cam.many(x, wanted)
        passes = sum(rows)
        rows.clear()
        alone = torch.stack([cam(x, target) for target in wanted], 1)
    handle.remove()
    assert torch.allclose(many, alone, atol=1e-4)
    assert sum(rows) == len(wanted) * passes


@pytest.mark.parametrize("kind", BOTH)
def test_several_layers_each_as_it_is_alone(seen, kind):
    model, x, classes = seen
    run = kind(model, ["layer4", "layer3"], progress=False).run(x[:1], classes[:1])
    for layer in run.layers:
        (alone,) = raw_maps(kind(model, layer, progress=False), x[:1], classes[:1])
        (call,) = run.calls(layer)
        together = kind(model, layer, progress=False, batch_size=32).get_layer_map(run, call)
        assert_same(alone, together, run.name(layer))


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_stopped_in_the_middle_the_model_is_as_it_was(seen, kind, error):
    model, x, _ = seen
    model = copy.deepcopy(model).train()
    modules, state, calls = list(model.named_modules()), copy.deepcopy(model.state_dict()), []

    def target(output):
        calls.append(1)
        if len(calls) > 40:
            raise error
        return output[0]

    with pytest.raises(error):
        kind(model, "layer4", batch_size=8, progress=False)(x, target)
    assert list(model.named_modules()) == modules
    assert_untouched(model)
    assert_same_state(model, state)
    assert kind(model, "layer4", progress=False)(x).shape == (3, 128, 128)


@pytest.mark.parametrize("kind", BOTH)
def test_a_layer_that_does_nothing_is_blank(kind):
    """Only the class token is read: what the last block says of the patches never reaches the score, and rounding is no map."""
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(32, 8, num_classes=10, embed_dim=24, depth=2, num_heads=3).eval()
    with pytest.warns(UserWarning, match="blank heat map for picture \\[0, 1\\]"):
        assert not kind(model, "blocks.1", progress=False)(torch.randn(2, 3, 32, 32), 3).any()


@pytest.mark.parametrize("name, layer", [("ResNet", "layer2"), ("MobileNetV2", "features.18")])
def test_as_pytorch_grad_cam_where_it_is_right(zoo, name, layer):
    """Behind a ReLU, for a positive score."""
    theirs = pytest.importorskip("pytorch_grad_cam")
    model, x = zoo[name][0], torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    how, top = dict(reshape_transform=lambda t: t[:, :128]), model(x).argmax(1)
    assert (model(x).amax(1) > 0).all()
    (ours,) = raw_maps(AblationCAM(model, layer, progress=False, **how), x, top)
    ours = nn.functional.interpolate(ours.relu()[:, None], (64, 64), mode="bilinear")[:, 0]
    library = theirs.AblationCAM(model=model, target_layers=[model.get_submodule(layer)], **how)
    their = library(x, [theirs.utils.model_targets.ClassifierOutputTarget(int(c)) for c in top])
    for i, (a, b) in enumerate(zip(ours, their)):
        assert correlation(a, b) >= 0.999, f"picture {i}"


@pytest.mark.parametrize("kind, variants", [(AblationCAM, 512), (ReciproCAM, 4)])
def test_only_what_lies_behind_is_computed(kind, variants):
    """Multiplications: one run of the model, and for each variant those of the last block and the head."""
    torch.manual_seed(0)
    model, x = ResNet(BasicBlock, [1, 1, 1, 2], num_classes=10).eval(), torch.randn(1, 3, 64, 64)
    kept = hooked(model, "layer4.0", FRONT, x, lambda a: None)[0]
    with torch.no_grad():
        whole, tail = flops(lambda: model(x)), flops(lambda: model.fc(model.layer4[1](kept).mean((2, 3))))
        cam = kind(model, "layer4.0", batch_size=64, progress=False)
        assert flops(lambda: raw_maps(cam, x, 1)) == whole + variants * tail


@pytest.mark.filterwarnings("ignore:blank heat map")  # with random weights all may speak against
class TestDetector:
    """It takes a list of pictures and gives a list of findings; a target picks a box."""

    @pytest.fixture(scope="class")
    def detector(self):
        torch.manual_seed(0)
        how = dict(num_classes=3, box_score_thresh=0.0, rpn_post_nms_top_n_test=10, box_detections_per_img=10, min_size=96, max_size=128)
        model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, **how)
        pictures = list(scenes(2, TEST + 2000).images[:, :, :96])
        for module in model.backbone.modules():  # random weights need statistics of their own, or all scores are alike
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            for _ in range(2):
                model.train().backbone(torch.stack(pictures) * 2 - 1)
        model.roi_heads.box_predictor.cls_score.weight.data *= 3
        return model.eval(), pictures

    @staticmethod
    def box(wanted):
        return lambda found: (box_iou(wanted[None], found["boxes"])[0] * found["scores"]).max()

    def scores(self, model, layer, pictures, targets, switch):
        """What the targets say if the layer gives what `switch` makes of its output."""

        def switched(output):
            output = {k: t.clone() for k, t in output.items()} if isinstance(output, dict) else output.clone()
            switch(output)
            return output

        found = replaced(model, layer, pictures, switched)
        return torch.stack([target(f) for target, f in zip(targets, found)])

    def assert_weights(self, model, layer, pictures, targets, weights, chosen, switch_off):
        """Each chosen channel weighs how far the score falls without it; `switch_off(output, picture, channel)`."""
        y = self.scores(model, layer, pictures, targets, lambda output: None)

        def without(n):
            def switch(output):
                for picture in range(2):
                    switch_off(output, picture, chosen[picture, n].item())

            return self.scores(model, layer, pictures, targets, switch)

        for n in range(chosen.shape[1]):
            drop = (y - without(n)) / y.abs()
            assert torch.allclose(weights[range(2), chosen[:, n]], drop, atol=1e-4), f"channels {chosen[:, n].tolist()}"
        assert weights.any()

    def targets(self, model, pictures, kind):
        if kind == "picture":
            return [lambda found: found["scores"].max()] * 2
        with torch.no_grad():
            return [self.box(found["boxes"][i]) for i, found in zip((0, 1), model(pictures))]

    @pytest.mark.parametrize("kind", ["picture", "box"])
    def test_a_layer(self, detector, kind):
        model, pictures = detector
        targets, layer = self.targets(model, pictures, kind), "backbone.body.16"
        cam = AblationCAM(model, layer, ratio=6 / 960, progress=False)
        run = cam.run(pictures, targets)
        (call,) = run.calls(run.layers[0])
        weights = cam.get_channel_weights(run, call, [run.targets])[0]
        chosen = call.activations.abs().mean((2, 3)).topk(6).indices.sort().values

        def switch_off(output, picture, channel):
            output[picture, channel] = 0

        self.assert_weights(model, layer, pictures, targets, weights, chosen, switch_off)
        assert cam(pictures, targets).shape == (2, 96, 128)

    def test_a_pyramid(self, detector):
        model, pictures = detector
        targets = self.targets(model, pictures, "box")

        def join(levels):
            return torch.cat([nn.functional.interpolate(t, levels["0"].shape[2:], mode="bilinear") for t in levels.values()], 1)

        cam = AblationCAM(model, "backbone", join, ratio=6 / 768, progress=False)
        run = cam.run(pictures, targets)
        (call,) = run.calls(model.backbone)
        weights = cam.get_channel_weights(run, call, [run.targets])[0]
        chosen = call.activations.abs().mean((2, 3)).topk(6).indices.sort().values

        def switch_off(levels, picture, channel):
            level, channel = divmod(channel, 256)
            list(levels.values())[level][picture, channel] = 0

        self.assert_weights(model, "backbone", pictures, targets, weights, chosen, switch_off)
        with pytest.raises(ValueError, match="reshape_transform: of 'backbone'"):
            ReciproCAM(model, "backbone", join, progress=False)(pictures, targets)

    def test_places(self, detector):
        model, pictures = detector
        targets = self.targets(model, pictures, "box")
        (raw,) = raw_maps(ReciproCAM(model, "backbone.body.16", gaussian=False, progress=False), pictures, targets)

        def score(picture, row, column):
            def alone(output):
                kept = output[:, :, row, column].clone()
                output[:] = 0
                output[:, :, row, column] = kept

            return self.scores(model, "backbone.body.16", pictures, targets, alone)[picture]

        for picture in range(2):
            lowest = divmod(raw[picture].argmin().item(), raw.shape[2])
            expected = score(picture, 1, 2) - score(picture, *lowest)
            assert abs(raw[picture, 1, 2] - expected) < 1e-4, f"picture {picture}"


@pytest.mark.parametrize(
    "kind, how, what",
    [
        (AblationCAM, dict(fill=0), "fill: got 0"),
        (AblationCAM, dict(ratio=1.5), "ratio: got 1.5"),
        (ReciproCAM, dict(form="softmax"), "form: got 'softmax'"),
        (ReciproCAM, dict(batch_size=0), "batch_size: got 0"),
    ],
)
def test_what_is_wrong_is_said(seen, kind, how, what):
    with pytest.raises(ValueError, match=what):
        kind(seen[0], "layer4", **how)


def test_eigen_smooth_needs_channels(seen):
    model, x, classes = seen
    with pytest.raises(ValueError, match="eigen_smooth: ReciproCAM"):
        ReciproCAM(model, "layer4", progress=False)(x, classes, eigen_smooth=True)
    assert AblationCAM(model, "layer4", progress=False)(x, classes, eigen_smooth=True).amax() == 1


def test_a_place_needs_a_transform_that_moves(seen):
    model, x, classes = seen
    with pytest.raises(ValueError, match="'layer4' the map's numbers are computed"):
        ReciproCAM(model, "layer4", lambda t: nn.functional.avg_pool2d(t, 2), progress=False)(x, classes)
