"""Segmenters: the target is pytorch_grad_cam's where that has one, masks lie the right way round, maps on what was asked about."""

import json
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget as Theirs
from torch import nn

from gradcam_nb import EigenCAM, GradCAM, HiResCAM, LayerCAM, SegEigenCAM, compare, record
from gradcam_nb.imaging.preprocess import Preprocess
from gradcam_nb.samples.networks import load
from gradcam_nb.samples.scenes import TEST, scenes
from gradcam_nb.targets.segmentation import SemanticSegmentationTarget, class_planes


def correlation(a, b):
    """Pearson's, over the pixels of each map."""
    return torch.stack([torch.corrcoef(torch.stack([x.flatten().float(), y.flatten().float()]))[0, 1] for x, y in zip(a, b)])


@pytest.fixture(scope="module")
def unet():
    """The U-Net, 20 scenes that it never saw, and every object on them that it finds: (picture, class)."""
    model, batch = load("scenes-unet"), scenes(20, TEST + 2000)
    x = batch.images * 2 - 1
    with torch.no_grad():
        says = model(x).argmax(1)
    found = [(i, c) for i, c in batch.labels.nonzero().tolist() if (says[i] == c + 1).sum() > 20]
    return model, x, says, batch.masks, found


def test_with_a_mask_it_is_pytorch_grad_cams():
    torch.manual_seed(0)
    planes = torch.randn(5, 12, 16, requires_grad=True)
    for mask in (np.random.default_rng(0).random((12, 16)) > 0.5, np.random.default_rng(1).random((12, 16)).astype(np.float32)):
        ours, theirs = SemanticSegmentationTarget(3, mask)(planes), Theirs(3, mask)(planes)
        assert torch.allclose(ours, theirs, rtol=1e-5)
        assert torch.equal(torch.autograd.grad(ours, planes)[0], torch.autograd.grad(theirs, planes)[0])


def test_without_a_mask_it_is_where_the_model_says_so(unet):
    model, x, says, _, found = unet
    with torch.no_grad():
        planes = model(x)
    for i, c in found:
        where = says[i] == c + 1
        assert torch.allclose(SemanticSegmentationTarget(c + 1)(planes[i]), planes[i, c + 1][where].sum(), rtol=1e-4)
    absent = next(c for c in range(1, 13) if not (says[0] == c).any())
    assert torch.allclose(SemanticSegmentationTarget(absent)(planes[0]), planes[0, absent].sum(), rtol=1e-4)
    settled = SemanticSegmentationTarget(found[0][1] + 1).settled(planes[found[0][0]])
    assert torch.equal(settled.places(planes[0].flip(-1)), (says[found[0][0]] == found[0][1] + 1).float())


def test_masks_lie_the_right_way_round():
    """A mask of twice the size, of any kind, keeps its rows and columns; so does a pixel."""
    planes = torch.zeros(2, 30, 40)
    mask = np.zeros((60, 80), np.uint8)
    mask[10:20, 40:80] = 255
    small = torch.zeros(30, 40)
    small[5:10, 20:] = 255
    for kind in (
        mask,
        mask[::-1][::-1],
        mask.astype(np.uint16),
        mask.astype(np.float64),
        Image.fromarray(mask),
        torch.from_numpy(mask),
        torch.from_numpy(mask)[None].half(),
    ):
        assert torch.equal(SemanticSegmentationTarget(0, kind).places(planes), small)
    assert SemanticSegmentationTarget(0, mask > 0).places(planes).max() == 1
    for pixel in ((0, 0), (59, 79), (10, 79), (31, 2)):
        assert SemanticSegmentationTarget(0, pixel, size=(60, 80)).places(planes).nonzero().tolist() == [[pixel[0] // 2, pixel[1] // 2]]
    with pytest.raises(ValueError, match="the right way round"):
        SemanticSegmentationTarget(0, torch.ones(40, 30))(planes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a PIL image's memory is read-only
        SemanticSegmentationTarget(0, Image.fromarray(mask))(planes)


def test_outputs_and_heads():
    planes = torch.randn(3, 4, 5)
    for output in (planes, dict(out=planes, aux=None), dict(logits=planes), (planes, None)):
        assert class_planes(output) is planes
    one = torch.randn(4, 5)
    expected = one[one > 0].sum()
    for output in (one, one[None], dict(out=one[None])):
        for category in (0, None):
            assert torch.allclose(SemanticSegmentationTarget(category)(output), expected)
    volume = torch.randn(2, 3, 4, 5)
    assert SemanticSegmentationTarget(1, (2, 3, 4))(volume) == volume[1, 2, 3, 4]


@pytest.mark.parametrize(
    "ask, message",
    [
        (lambda: SemanticSegmentationTarget(3)(torch.zeros(3, 4, 4)), "class 3 of a model with 3 classes; pass 0 to 2"),
        (lambda: SemanticSegmentationTarget(-1)(torch.zeros(3, 4, 4)), "pass 0 to 2"),
        (lambda: SemanticSegmentationTarget(None)(torch.zeros(3, 4, 4)), "no class given"),
        (lambda: SemanticSegmentationTarget(0, np.zeros((4, 4))), "it is empty"),
        (lambda: SemanticSegmentationTarget(0, torch.full((4, 4), torch.nan)), "NaN"),
        (
            lambda: SemanticSegmentationTarget(0, torch.eye(400)[:1].expand(400, 400) * torch.eye(400)[:, :1])(torch.zeros(3, 4, 4)),
            "nothing is left of it",
        ),
        (lambda: SemanticSegmentationTarget(0, (4, 0))(torch.zeros(3, 4, 4)), "pass (row, column) inside of it"),
        (lambda: SemanticSegmentationTarget(0, (0, 0))(torch.zeros(7)), "no planes of class scores"),
        (lambda: SemanticSegmentationTarget(0)([]), "no planes of class scores"),
    ],
)
def test_errors_are_one_line(ask, message):
    with pytest.raises(ValueError) as error:
        ask()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_map_of_a_linear_segmenter():
    """Derived by hand: behind the layer one 1 × 1 convolution, so HiResCAM is the plane's own score on the mask."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1, bias=False))
    x, mask = torch.randn(2, 3, 16, 16), torch.zeros(16, 16)
    mask[3:9, 5:14] = 1
    (call,) = HiResCAM(model, "1").run(x, SemanticSegmentationTarget(2, mask)).calls(model[1])
    assert torch.allclose(HiResCAM(model, "1").get_cam_image(call.activations, call.gradients), model(x)[:, 2] * mask, atol=1e-5)


def test_a_batch_is_as_one_by_one(unet):
    model, x, _, _, found = unet
    rows, targets = [i for i, _ in found[:6]], [SemanticSegmentationTarget(c + 1) for _, c in found[:6]]
    for method in (GradCAM, HiResCAM, SegEigenCAM):
        cam = method(model, "encoder.3")
        assert torch.allclose(cam(x[rows], targets), torch.cat([cam(x[[i]], t) for i, t in zip(rows, targets)]), atol=1e-3)


def test_half_precision(unet):
    """The sum over 16,384 pixels overflows float16; the map does not."""
    model, x, _, _, found = unet
    i, c = found[0]
    r = record(
        model,
        ["encoder.3"],
        x[[i]],
        lambda output: SemanticSegmentationTarget(c + 1, np.ones((128, 128)))(dict(out=(100 * output[0]).half())),
    )
    assert r.gradients[model.encoder[3]][0].isfinite().all()


def test_scenes(unet):
    """Asked for one object, the map lies on it; Grad-CAM's weights do not fit a segmenter, and EigenCAM cannot be asked."""
    model, x, _, masks, found = unet
    rows, truth = [i for i, _ in found], torch.stack([masks[i, c] for i, c in found])
    maps = compare(
        model,
        x[rows],
        [GradCAM, HiResCAM, LayerCAM, EigenCAM, SegEigenCAM],
        [SemanticSegmentationTarget(c + 1) for _, c in found],
        target_layers="encoder.3",
    )
    fit = {name: correlation(heats, truth).mean().item() for name, heats in maps.items()}
    assert min(fit["HiResCAM"], fit["LayerCAM"], fit["SegEigenCAM"]) > 0.8, fit
    assert fit["GradCAM"] < 0.75, fit
    assert fit["EigenCAM"] < 0.45, fit


def test_one_pixel_is_a_part_of_the_class(unet):
    """Two squares of one class would be one region; a pixel is one place, and its map lies around it."""
    model, x, _, masks, found = unet
    cam = HiResCAM(model, "encoder.3")
    for i, c in found[:8]:
        row, column = masks[i, c].nonzero().float().mean(0).int().tolist()
        if not masks[i, c, row, column]:
            continue
        peak = divmod(cam(x[[i]], SemanticSegmentationTarget(c + 1, (row, column)))[0].argmax().item(), 128)
        assert abs(peak[0] - row) <= 16
        assert abs(peak[1] - column) <= 16


def test_dogs(data):
    """DeepLab on the two photos that hold a dog, drawn around by people; measured: HiResCAM 0.76 and 0.90, Grad-CAM 0.61 and 0.70."""
    import demo_models

    model = demo_models.deeplabv3_mobilenet_v2_voc(data / "models")
    coco = json.loads((data / "annotations/coco_ccby_instances.json").read_text())
    dog, preprocess, fit = demo_models.VOC_CLASSES.index("dog"), Preprocess((513, 513), resize="squash"), {}
    number = next(kind["id"] for kind in coco["categories"] if kind["name"] == "dog")
    for image in coco["images"]:
        plane = Image.new("L", (image["width"], image["height"]))
        for one in coco["annotations"]:
            if (one["image_id"], one["category_id"]) == (image["id"], number):
                for polygon in one["segmentation"]:
                    ImageDraw.Draw(plane).polygon(polygon, fill=1)
        mask = torch.from_numpy(np.array(plane))
        if not mask.any():
            continue
        truth = F.interpolate(mask[None, None].float(), (513, 513), mode="nearest-exact")[0]
        maps = compare(
            model,
            preprocess(data / "images" / image["file_name"]),
            ["GradCAM", "HiResCAM", "LayerCAM"],
            SemanticSegmentationTarget(dog),
            target_layers="backbone.17",
        )
        for name, heat in maps.items():
            fit.setdefault(name, []).append(correlation(heat, truth).item())
        # The true mask as PIL image in the photo's own size asks about the same places.
        own = SemanticSegmentationTarget(dog, plane).places(torch.zeros(21, 513, 513))
        assert (own == truth[0]).float().mean() > 0.999
    assert len(fit["HiResCAM"]) == 2
    assert min(fit["HiResCAM"]) > 0.7, fit
    assert sum(fit["HiResCAM"]) / 2 > 0.78, fit
    assert min(fit["LayerCAM"]) > 0.62, fit
    assert min(fit["GradCAM"]) > 0.5, fit
