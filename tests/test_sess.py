"""SESS against its paper, slowly, one patch at a time in plain numpy; against PyPI grad-cam; and what every method must keep."""

import copy
import warnings
from functools import cache

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from pytorch_grad_cam import SESS as PyPI
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget as PyPITarget
from tiny_models import tiny_vit
from torch import nn
from traces import assert_untouched, traces

from gradcam_nb.engine.batches import watching
from gradcam_nb.imaging.preprocess import Preprocess
from gradcam_nb.methods.attention_rollout import AttentionRollout
from gradcam_nb.methods.eigencam import EigenCAM
from gradcam_nb.methods.finercam import FinerCAM
from gradcam_nb.methods.gradcam import GradCAM
from gradcam_nb.methods.refinecam import RefineCAM
from gradcam_nb.methods.scorecam import ScoreCAM
from gradcam_nb.methods.sess import SESS
from gradcam_nb.targets.classifier import ClassifierOutputTarget
from gradcam_nb.targets.softmax import ClassifierOutputSoftmaxTarget

pytestmark = pytest.mark.filterwarnings("ignore:blank heat map")
FEW = dict(num_scales=2, progress=False)
OPTIONS = {
    "plain": {},
    "max": dict(pool="max"),
    "not smooth": dict(smooth=False),
    "pre-filtered": dict(pre_filter_ratio=0.6),
    "theta": dict(theta=0.25),
    "raw scores": dict(use_softmax_scores=False),
    "small windows": dict(window_size=32, scales=[32, 40, 64]),
    "overlapping": dict(step_size=29),
    "steps": dict(scale_step_ratio=0.6),
}


@cache
def seen(height=64, width=64):
    """A network with random weights, and two pictures."""
    torch.manual_seed(6)  # with which no class that is asked for has a blank map
    return torchvision.models.resnet18(num_classes=10).eval(), torch.randn(2, 3, height, width)


def lines(old, new):
    """The matrix of linear interpolation with half-pixel centres."""
    matrix = np.zeros((new, old))
    for i in range(new):
        at = np.clip((i + 0.5) * old / new - 0.5, 0, old - 1)
        low = min(int(at), old - 1)
        matrix[i, low] += 1 - (at - low)
        matrix[i, min(low + 1, old - 1)] += at - low
    return matrix


def resized(picture, height, width):
    return lines(picture.shape[-2], height) @ picture @ lines(picture.shape[-1], width).T


def gaussian(cam):
    """Eleven pixels, a deviation of five; the picture is mirrored at its edge."""
    weights = np.exp(-0.5 * (np.arange(-5, 6) / 5) ** 2)
    weights /= weights.sum()
    padded, out = np.pad(cam, 5, mode="reflect"), np.zeros_like(cam)
    for i in range(cam.shape[0]):
        for j in range(cam.shape[1]):
            out[i, j] = weights @ padded[i : i + 11, j : j + 11] @ weights
    return out


def starts(side, window, step):
    """Where windows begin along one axis; the last one ends with the picture."""
    at = 0
    while at < side - window:
        yield at
        at += step
    yield side - window


def by_the_paper(model, picture, category, scales, window, step, ratio=0.0, theta=0.0, pool="mean", smooth=True):
    """The six steps: scale, slide, filter, explain, fuse, smooth."""
    height, width = picture.shape[1:]
    patches, places = [], []
    for scale in scales:
        h, w = int(scale * height / min(height, width)), int(scale * width / min(height, width))
        large = np.stack([resized(channel, h, w) for channel in picture])
        for top in starts(h, window, step):
            for left in starts(w, window, step):
                patches.append(large[:, top : top + window, left : left + window])
                places.append((top, left, h, w))
    batch = [torch.tensor(patch, dtype=torch.float32)[None] for patch in patches]
    with torch.no_grad():
        scores = [torch.exp(torch.log_softmax(model(patch)[0], 0)[category]).item() for patch in batch]
    chosen = sorted(range(len(patches)), key=lambda i: scores[i])[int(ratio * len(patches)) :]
    channels = []
    for i in chosen:
        cam = GradCAM(model, "layer3")(batch[i], category)[0].double().numpy()
        if cam.max() > cam.min():
            cam = (cam - cam.min()) / (cam.max() - cam.min())
        top, left, h, w = places[i]
        whole = np.zeros((h, w))
        whole[top : top + window, left : left + window] = cam * scores[i] / max(scores)
        channels.append(resized(whole, height, width))
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            lit = [channel[i, j] for channel in channels if channel[i, j] > theta]
            if pool == "max":
                out[i, j] = max(channel[i, j] for channel in channels)
            elif lit:
                out[i, j] = sum(lit) / len(lit)
    out = gaussian(out) if smooth else out
    return torch.tensor(out / out.max(), dtype=torch.float32)


@pytest.mark.parametrize("how", [dict(), dict(theta=0.25), dict(ratio=0.5), dict(pool="max"), dict(smooth=False)], ids=str)
def test_the_paper_written_again(how):
    model, x = seen(48, 60)
    expected = by_the_paper(model, x[0].double().numpy(), 3, [48, 62, 76], 48, 48, **how)
    ours = {name.replace("ratio", "pre_filter_ratio"): value for name, value in how.items()}
    torch.testing.assert_close(SESS(model, "layer3", num_scales=3, progress=False, **ours)(x[:1], 3)[0], expected, rtol=0, atol=1e-4)


def likeness(a, b):
    return torch.corrcoef(torch.stack([torch.as_tensor(a).flatten(), torch.as_tensor(b).flatten()]))[0, 1].item()


CASES = [pytest.param((48, 60), how, id=f"{name} (48, 60)") for name, how in OPTIONS.items()]
CASES.append(pytest.param((64, 64), {}, id="plain (64, 64)"))


@pytest.mark.parametrize("size, how", CASES)
def test_as_pypi_grad_cam(size, how):
    model, x = seen(*size)
    how = dict(num_scales=3) | how
    with PyPI(model, [model.layer3], **how) as theirs:
        expected = theirs(x, [PyPITarget(3), PyPITarget(5)])
    for ours, other in zip(SESS(model, "layer3", progress=False, **how)(x, [3, 5]), expected):
        assert likeness(ours, other) >= 0.999


def test_as_pypi_grad_cam_with_real_weights(data):
    import demo_models

    net = demo_models.mobilenet_v2_imagenet(data / "models")
    x = Preprocess((128, 128), resize="squash")(Image.open(data / "images/misc/dogs.png"))
    for how in (dict(num_scales=3), dict(num_scales=3, pre_filter_ratio=0.5, pool="max")):
        with PyPI(net, [net.features[-1]], **how) as theirs:
            expected = theirs(x, None)
        ours = SESS(net, "features.18", progress=False, **how)(x)
        assert likeness(ours[0], expected[0]) >= 0.999, how


def test_a_batch_is_its_pictures_one_by_one():
    model, x = seen(64, 80)
    cam = SESS(model, "layer3", batch_size=3, **FEW)
    torch.testing.assert_close(torch.cat([cam(x[[i]], [c]) for i, c in enumerate((3, 5))]), cam(x, [3, 5]), rtol=0, atol=1e-4)
    torch.testing.assert_close(cam.many(x, [3, 5]), torch.stack([cam(x, 3), cam(x, 5)], 1), rtol=0, atol=1e-4)


def test_targets_of_every_kind():
    """No target is the whole picture's top class; a class means its probability, and another target its own score."""
    model, x = seen()
    cam, top = SESS(model, "layer3", **FEW), model(x).argmax(1)
    heat = cam(x)
    for targets in (top, top.tolist(), [ClassifierOutputTarget(c) for c in top]):
        assert torch.equal(cam(x, targets), heat), targets
    assert torch.equal(cam(x, 4), cam(x, [4, 4]))
    raw = SESS(model, "layer3", use_softmax_scores=False, **FEW)
    assert torch.equal(cam(x, lambda output: output[4]), raw(x, 4))
    assert not torch.allclose(raw(x, 4), cam(x, 4), atol=1e-3), "score and probability cannot be told apart"
    run = cam.run(x, ClassifierOutputSoftmaxTarget(4))
    assert torch.equal(cam.get_scores(run, cam.get_patches(run)), cam.get_scores(cam.run(x, 4), cam.get_patches(run)))
    with pytest.raises(ValueError, match="got 3 for 2 pictures"):
        cam(x, [1, 2, 3])


def test_where_no_score_is_positive_all_patches_count_alike():
    model, x = seen()
    cam = SESS(model, "layer3", **FEW)
    run = cam.run(x, lambda output: -output.exp().sum())
    scores = cam.get_scores(run, cam.get_patches(run))
    assert not scores.any()
    assert torch.equal(cam.get_weights(scores), torch.ones_like(scores))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_number_formats(dtype):
    model, x = seen()
    heat = SESS(copy.deepcopy(model).to(dtype), "layer4", **FEW)(x.to(dtype), [3, 5])
    assert heat.dtype == torch.float32
    assert heat.isfinite().all()
    assert heat.min() >= 0
    assert heat.max() == 1
    near = 0.999 if dtype == torch.float64 else 0.95
    for ours, plain in zip(heat, SESS(model, "layer4", **FEW)(x, [3, 5])):
        assert likeness(ours, plain) > near


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_model_and_the_input_are_left_as_they_were(mode):
    plain, picture = seen()
    model, x = copy.deepcopy(plain).train(), picture.clone().requires_grad_()
    model.bn1.eval()
    before = traces(model)
    with mode():
        cam = SESS(model, "layer3", **FEW)
        heat = cam(x, [3, 5])
    torch.testing.assert_close(heat, SESS(plain, "layer3", **FEW)(picture, [3, 5]), rtol=0, atol=1e-5)
    assert not heat.requires_grad
    assert x.grad is None
    assert_untouched(model, before)
    torch.testing.assert_close(cam.outputs, plain(picture), rtol=0, atol=1e-5)


# ScoreCAM at the first stage, which has fewer channels to ask.
BASES = [(EigenCAM, "layer3"), (FinerCAM, "layer3"), (ScoreCAM, "layer1"), (RefineCAM, ["layer2", "layer3"])]


@pytest.mark.parametrize("base, layers", [pytest.param(*case, id=case[0].__name__) for case in BASES])
def test_any_base_method(base, layers):
    model, x = seen()
    cam = SESS(model, layers, base_method=base, num_scales=1, smooth=False, progress=False)
    heat, plain = cam(x[:1], 3), base(model, layers)(x[:1], 3)
    plain = (plain - plain.min()) / (plain.max() - plain.min())
    torch.testing.assert_close(heat, plain, rtol=0, atol=1e-4)
    assert cam.uses_gradients == cam.base.uses_gradients


def test_transformers_and_windows_that_are_no_squares():
    torch.manual_seed(0)
    vit, x = tiny_vit(32, 48, depth=2).eval(), torch.randn(2, 3, 32, 48)
    for base, layer in ((GradCAM, "blocks.1.norm1"), (AttentionRollout, None)):
        heat = SESS(vit, layer, base_method=base, window_size=(32, 48), **FEW)(x, 3)
        assert heat.shape == (2, 32, 48), base
        assert heat.isfinite().all(), base
    with pytest.raises(ValueError, match=r"does not take patches of \(32, 32\).*such as \(32, 48\)"):
        SESS(vit, "blocks.1.norm1", **FEW)(x, 3)


def test_several_inputs_lists_and_several_layers():
    """What has places is cut, what has none goes along; a list's pictures are cut each."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = seen()[0]

        def forward(self, x, extra):
            return self.net(x) + extra

    class Listed(Two):
        def forward(self, pictures):
            return self.net(torch.stack(pictures))

    model, x = seen()
    extra, plain = torch.randn(2, 10), SESS(model, "layer3", **FEW)
    heat = SESS(Two(), "net.layer3", **FEW)((x, torch.zeros(2, 10)), [3, 5])
    torch.testing.assert_close(heat, plain(x, [3, 5]))
    assert not torch.allclose(SESS(Two(), "net.layer3", **FEW)((x, extra), [3, 5]), heat)
    torch.testing.assert_close(SESS(Listed(), "net.layer3", **FEW)(list(x), [3, 5]), heat)
    layers = ["layer2", "layer3"]
    each = SESS(model, layers, **FEW)(x, 3, fusion="none")
    assert each.shape == (2, 2, 64, 64)
    torch.testing.assert_close(each[:, 1], plain(x, 3))


def test_no_word_of_a_blank_patch():
    """Patches are mute; a blank picture has one warning; other threads' filters stay."""
    model, x = seen()
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        SESS(model, "layer4", num_scales=3, progress=False)(x, [3, 5])
        assert not caught
        heat = SESS(model, "layer4", **FEW)(x, lambda output: 0 * output[0])
    assert not heat.any()
    (warning,) = caught
    assert "no gradient reaches 'layer4'" in str(warning.message)
    assert warnings.filters == before


def test_progress_is_told_and_few_patches_are_held():
    model, x = seen()
    told, largest = [], []
    handle = model.register_forward_pre_hook(lambda m, args: largest.append(len(args[0])))
    try:
        with watching(lambda *seen: told.append(seen)):
            SESS(model, "layer3", num_scales=4, batch_size=4, pre_filter_ratio=0.5)(x, 3)
    finally:
        handle.remove()
    patches = 1 + 4 + 4 + 4
    totals = {label: total for label, _, total in told}
    assert max(largest) == 4
    assert totals == {"SESS, scores": 2 * patches, "SESS, maps": 2 * (patches - patches // 2)}


@pytest.mark.parametrize(
    "how, words",
    [
        (dict(pool="median"), "pool: got 'median'"),
        (dict(pre_filter_ratio=1.0), "pre_filter_ratio: got 1.0"),
        (dict(theta=-1), "theta: got -1"),
        (dict(num_scales=0), "num_scales: got 0"),
        (dict(scales=[]), "scales: got"),
        (dict(window_size=0), "window_size: got 0"),
        (dict(scale_step_ratio=0), "scale_step_ratio: got 0"),
        (dict(batch_size=0), "batch_size: got 0"),
        (dict(scales=[32]), "at 32 a window of .* does not fit; pass 64 or more"),
        (dict(step_size=65), "leaves gaps"),
        (dict(window_size=(64, 64, 64)), "one number, or one for each axis"),
    ],
)
def test_errors(how, words):
    model, x = seen()
    with pytest.raises(ValueError, match=words):
        SESS(model, "layer3", progress=False, **how)(x, 3)
