"""Truths of the room `imaging`: equal to timm, torchvision and grad-cam, right geometry, untouched inputs, plain errors."""

import subprocess
import sys
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from gradcam_nb.imaging.arrays import deprocess_image, preprocess_image
from gradcam_nb.imaging.figure import grid
from gradcam_nb.imaging.overlay import colorize, overlay, show_cam_on_image
from gradcam_nb.imaging.preprocess import Preprocess, preprocess_for
from gradcam_nb.imaging.read import read_image
from gradcam_nb.imaging.regions import to_boxes, to_mask

SIZES = [(300, 180), (181, 303), (97, 97), (57, 33), (8, 30), (641, 480)]


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def bump(height, width, y, x, spread=0.03):
    rows, columns = (torch.arange(side) + 0.5 for side in (height, width))
    return torch.exp(-((rows[:, None] - y) ** 2 / (spread * height) ** 2 + (columns - x) ** 2 / (spread * width) ** 2))


def brightest(image):
    "The centre of the pixels that are brightest, as (x, y)."
    grey = np.asarray(image.convert("L"), dtype=float)
    y, x = np.nonzero(grey >= grey.max() - 1e-9)
    return x.mean() + 0.5, y.mean() + 0.5


# reading


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_every_mode_becomes_rgb_of_the_same_size(mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((5, 7), 40000, np.uint16))
    elif mode == "F":
        image = Image.fromarray(np.full((5, 7), 0.5, np.float32))
    else:
        image = noise(7, 5).convert("I" if mode == "I" else "RGB").convert(mode)
    before = image.tobytes()
    result = read_image(image)
    assert (result.mode, result.size) == ("RGB", (7, 5))
    assert result is not image
    assert image.tobytes() == before


def test_read_tensors_and_arrays_exactly():
    image = noise(13, 9)
    array = np.asarray(image)
    tensor = torch.tensor(array).permute(2, 0, 1)
    for form in (array, array / 255, np.float32(array) / 255, tensor, tensor / 255, tensor[None] / 255, (tensor / 255).requires_grad_()):
        assert (np.asarray(read_image(form)) == array).all()
    alpha = np.dstack([array, np.zeros((9, 13), np.uint8)])
    assert (np.asarray(read_image(alpha)) == 255).all()


def test_exif_is_applied_and_files_are_closed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    noise(20, 10).save(tmp_path / "side.jpg", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        assert read_image(tmp_path / "side.jpg").size == (10, 20)
    with Image.open(tmp_path / "side.jpg") as opened:
        assert read_image(opened).size == (10, 20)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"])
def test_truncated_files_are_named(kind, tmp_path):
    stored = BytesIO()
    noise(60, 40).save(stored, kind)
    path = tmp_path / "broken"
    path.write_bytes(stored.getvalue()[: len(stored.getvalue()) // 2])
    with pytest.raises(ValueError, match="broken.* is no readable picture"):
        read_image(path)


@pytest.mark.parametrize(
    "source, error, words",
    [
        ("missing.png", ValueError, "does not exist"),
        (Path(__file__).parent, ValueError, "is a folder"),
        (Path(__file__), ValueError, "no readable picture"),
        (b"", ValueError, "no readable picture"),
        (np.zeros((0, 4)), ValueError, "is empty"),
        (torch.zeros(3, 0, 4), ValueError, "is empty"),
        (Image.new("RGB", (0, 4)), ValueError, "is empty"),
        (np.full((4, 4), np.nan), ValueError, "NaN"),
        (torch.full((3, 4, 4), torch.inf), ValueError, "NaN or infinite"),
        (np.full((4, 4), 1.5), ValueError, r"pass floats in \[0, 1\]"),
        (torch.full((3, 4, 4), -0.5), ValueError, r"pass floats in \[0, 1\]"),
        (np.zeros((4, 4, 2)), ValueError, "channels last"),
        (np.zeros(4), ValueError, "shape"),
        (torch.zeros(2, 4, 4), ValueError, "channels first"),
        (torch.zeros(5, 3, 4, 4), ValueError, "pass one picture"),
        (np.zeros((4, 4), complex), TypeError, "complex"),
        (torch.zeros(4, 4, dtype=torch.long), TypeError, "int64"),
        (42, TypeError, "int"),
        ([noise(4, 4)], TypeError, "list"),
    ],
)
def test_read_errors_are_one_plain_line(source, error, words):
    with pytest.raises(error, match=words) as caught:
        read_image(source)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("source: ")


def test_text_file_object():
    with open(__file__) as file, pytest.raises(TypeError, match="'rb'"):
        read_image(file)


# preprocessing


@pytest.mark.parametrize("size", [(224, 224), (96, 128), (160, 112)])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("mode", ["center", "squash"])
def test_preprocess_equals_timm(size, crop_pct, mode):
    for interpolation in ("bilinear", "bicubic"):
        theirs = create_transform((3, *size), crop_pct=crop_pct, crop_mode=mode, interpolation=interpolation)
        ours = Preprocess(size, resize={"center": "crop"}.get(mode, mode), crop_pct=crop_pct, interpolation=interpolation)
        for one in SIZES[:4]:
            picture = noise(*one)
            torch.testing.assert_close(ours(picture)[0], theirs(picture), rtol=0, atol=1e-6)


def test_preprocess_equals_every_torchvision_classifier():
    """Every kind of transform there is, once: many weights share one."""
    seen, picture = set(), noise(181, 303)
    for name in torchvision.models.list_models(torchvision.models):
        for weights in torchvision.models.get_model_weights(name):
            theirs = weights.transforms()
            if repr(theirs) not in seen:
                seen.add(repr(theirs))
                torch.testing.assert_close(preprocess_for(torch.nn.Identity(), weights)(picture)[0], theirs(picture), rtol=0, atol=1e-6)
    assert len(seen) > 15


@pytest.mark.parametrize("crop, resize", [(93, 128), (224, 232), (105, 117), (123, 200)])
def test_weights_whose_quotient_rounds(crop, resize):
    class Weights:
        transforms = staticmethod(lambda: torchvision.transforms._presets.ImageClassification(crop_size=crop, resize_size=resize))

    picture = noise(150, 210)
    torch.testing.assert_close(preprocess_for(torch.nn.Identity(), Weights)(picture)[0], Weights.transforms()(picture), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_preprocess_for_timm(name):
    model, picture = timm.create_model(name), noise(150, 210)
    pre = preprocess_for(model)
    torch.testing.assert_close(pre(picture)[0], create_transform(**resolve_model_data_config(model))(picture), rtol=0, atol=1e-6)
    assert preprocess_for(torch.nn.DataParallel(model)) == preprocess_for(torch.compile(model)) == pre
    with torch.no_grad():
        model.eval()(pre(picture))


def test_preprocess_for_other_models():
    assert preprocess_for(torch.nn.Conv2d(3, 4, 1)) == Preprocess()
    assert preprocess_for(torchvision.models.squeezenet1_1()) == Preprocess()
    assert preprocess_for(torchvision.models.VisionTransformer(96, 16, 1, 1, 16, 16)).size == (96, 96)
    assert preprocess_for(timm.create_model("test_resnet", in_chans=1))(noise(50, 40)).shape[1] == 1
    padded = torch.nn.Identity()
    padded.pretrained_cfg = dict(crop_mode="border", input_size=(3, 64, 64))
    with pytest.raises(ValueError, match="border"):
        preprocess_for(padded)
    with pytest.raises(ValueError, match="SemanticSegmentation"):
        preprocess_for(torch.nn.Identity(), torchvision.models.segmentation.FCN_ResNet50_Weights.DEFAULT)


def test_small_pictures():
    assert Preprocess()(noise(8, 8)).shape == (1, 3, 224, 224)
    for size in [(7, 100), (100, 1)]:
        with pytest.raises(ValueError, match="at least 8"):
            Preprocess()(noise(*size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("shape", [(160, 160), (96, 144)])
def test_undo_gives_what_region_says(size, resize, shape):
    "The tensor as a picture is the region of the original, resized: an independent way to the same pixels."
    picture = read_image(np.asarray(colorize(bump(size[1], size[0], size[1] * 0.4, size[0] * 0.6, 0.5), "viridis")))
    pre = Preprocess(shape, resize=resize)
    expected = picture.resize(shape[::-1], Image.BILINEAR, box=tuple(np.clip(pre.region(picture), 0, (*size, *size))))
    assert np.abs(np.asarray(pre.undo(pre(picture)), int) - np.asarray(expected, int)).mean() < 2


# overlays and their geometry


@pytest.mark.parametrize("size", [(300, 180), (181, 303), (97, 97), (57, 33), (641, 480), (1001, 399)])
@pytest.mark.parametrize(
    "pre",
    [
        Preprocess((160, 160)),
        Preprocess((224, 224), crop_pct=1.0),
        Preprocess((96, 144)),
        Preprocess((160, 160), resize="squash"),
        Preprocess((100, 100), resize="squash", crop_pct=0.8),
    ],
)
def test_a_dot_lands_on_the_right_pixel(size, pre):
    "A dot on the picture is found in the tensor, a map is put there, and its paint is on the dot again."
    width, height = size
    left, top, right, bottom = pre.region(Image.new("RGB", size))
    for u, v in [(0.5, 0.5), (0.2, 0.7), (0.8, 0.3)]:
        x, y = left + u * (right - left), top + v * (bottom - top)
        picture = colorize(bump(height, width, y, x, 0.04), "gray")
        seen = pre(picture)[0].mean(0)
        weight = (seen - seen.min()).pow(4)
        rows, columns = (torch.arange(side) + 0.5 for side in pre.size)
        in_tensor = (weight.sum(0) @ columns / weight.sum()).item(), (weight.sum(1) @ rows / weight.sum()).item()
        assert in_tensor == pytest.approx((u * pre.size[1], v * pre.size[0]), abs=1)

        heat_map = bump(*pre.size, in_tensor[1], in_tensor[0])
        painted = overlay(Image.new("RGB", size), heat_map, region=(left, top, right, bottom), opacity=1, colormap="gray", threshold=0.01)
        array = np.asarray(painted, float)[..., 0] * (np.asarray(painted)[..., 0] != 64)
        weight = array**2
        found = weight.sum(0) @ (np.arange(width) + 0.5) / weight.sum(), weight.sum(1) @ (np.arange(height) + 0.5) / weight.sum()
        slack = 0.6 + 0.5 * max((right - left) / pre.size[1], (bottom - top) / pre.size[0])
        assert painted.size == size
        assert found == pytest.approx((x, y), abs=slack)


@pytest.mark.parametrize("size", SIZES)
def test_overlay_leaves_alone_what_it_does_not_paint(size):
    picture, heat_map = noise(*size), torch.rand(14, 14, generator=torch.Generator().manual_seed(0))
    before, kept = picture.tobytes(), heat_map.clone()
    assert overlay(picture, heat_map, opacity=0).tobytes() == before
    assert overlay(picture, heat_map * 0.4, threshold=0.5).tobytes() == before
    assert overlay(picture, heat_map).size == size
    assert picture.tobytes() == before
    assert torch.equal(heat_map, kept)


def test_outside_the_region_nothing_is_painted_and_all_is_grey():
    picture, heat_map = noise(200, 100), torch.ones(10, 10)
    result = np.asarray(overlay(picture, heat_map, region=(50, 0, 150, 100), opacity=1, colormap="turbo"), int)
    painted = np.asarray(colorize(torch.ones(1, 1)))[0, 0]
    assert (result[:, 50:150] == painted).all()
    outside = np.concatenate([result[:, :50], result[:, 150:]], 1)
    assert (outside.max(2) == outside.min(2)).all()
    assert outside.min() >= 64
    assert outside.max() <= 192


def test_a_narrow_peak_survives_on_a_small_picture():
    heat_map = torch.zeros(224, 224)
    heat_map[112:118, 60:66] = 1
    painted = np.asarray(overlay(Image.new("RGB", (40, 40)), heat_map, opacity=1, colormap="gray"))[..., 0]
    y, x = np.unravel_index(painted.argmax(), painted.shape)
    assert (x, y) in {(10, 20), (11, 20), (11, 21), (10, 21)}
    assert painted.max() > 100


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(heat_map=torch.rand(2, 4, 4)), r"heat_map\[0\]"),
        (dict(heat_map=torch.full((4, 4), 2.0)), r"\[0, 1\]"),
        (dict(heat_map=torch.full((4, 4), torch.nan)), "NaN"),
        (dict(heat_map=torch.zeros(0, 4)), "shape"),
        (dict(opacity=1.5), "opacity: got 1.5"),
        (dict(threshold=-1), "threshold: got -1"),
        (dict(colormap="no_such"), "colormap: got 'no_such'"),
        (dict(region=(5, 5, 5, 5)), r"region: got \(5.0, 5.0, 5.0, 5.0\)"),
        (dict(region=(0, 0, 50, 5)), "region: got .* the picture of 20 × 10 pixels"),
        (dict(region=(0, 0, 4)), "region: got 3 values"),
    ],
)
def test_overlay_errors(change, words):
    with pytest.raises(ValueError, match=words):
        overlay(**(dict(picture=noise(20, 10), heat_map=torch.rand(4, 4)) | change))


# the same as pytorch-grad-cam


@pytest.fixture(scope="module")
def theirs():
    return pytest.importorskip("pytorch_grad_cam.utils.image", reason="grad-cam is not installed")


@pytest.mark.parametrize("use_rgb", [True, False])
@pytest.mark.parametrize("image_weight", [0.0, 0.3, 0.5, 1.0])
def test_show_cam_on_image_is_theirs(theirs, use_rgb, image_weight):
    import cv2

    generator = np.random.default_rng(0)
    img, mask = np.float32(generator.random((30, 40, 3))), np.float32(generator.random((30, 40)))
    copies = img.copy(), mask.copy()
    for colormap in (cv2.COLORMAP_JET, cv2.COLORMAP_VIRIDIS):
        expected = theirs.show_cam_on_image(img, mask, use_rgb, colormap, image_weight)
        ours = show_cam_on_image(img, mask, use_rgb, colormap, image_weight)
        tensors = show_cam_on_image(torch.tensor(img).permute(2, 0, 1), torch.tensor(mask)[None], use_rgb, colormap, image_weight)
        assert np.abs(ours.astype(int) - expected).max() <= 1
        assert (ours == tensors).all()
    assert (img == copies[0]).all()
    assert (mask == copies[1]).all()


def test_show_cam_on_image_errors():
    img, mask = np.zeros((4, 5, 3), np.float32), np.zeros((4, 5), np.float32)
    assert show_cam_on_image(img, mask, image_weight=1.0).max() == 0  # theirs divides zero by zero here
    for change, words in [
        (dict(img=img + 255), "img / 255"),
        (dict(mask=mask * np.nan), "NaN"),
        (dict(mask=mask[:2]), "one size"),
        (dict(img=img[..., 0]), "height × width × 3"),
        (dict(image_weight=2), "image_weight: got 2"),
        (dict(colormap=-7), "colormap: got -7"),
        (dict(mask=mask[:0]), "mask: got shape .*, which is empty"),
    ]:
        with pytest.raises(ValueError, match=words):
            show_cam_on_image(**(dict(img=img, mask=mask) | change))
    with pytest.raises(TypeError, match="mask: got list"):
        show_cam_on_image(img, [[0]])


def test_preprocess_and_deprocess_image_are_theirs(theirs):
    for array in (np.random.default_rng(0).random((9, 7, 3)), np.asarray(noise(9, 7))):
        for arguments in ({}, dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])):
            expected = theirs.preprocess_image(array, **arguments)
            assert torch.equal(preprocess_image(array, **arguments), expected)
        assert (deprocess_image(array) == theirs.deprocess_image(array)).all()


# figures


def test_grid_layout_titles_and_no_pyplot_state():
    def figure():
        return grid([noise(20, 10), torch.eye(5), np.zeros((4, 4), np.uint8)], ["a $b", "c" * 80, 3])

    once, again = figure(), figure()
    assert [axis.get_title().replace("\n", "") for axis in once.axes] == ["a $b", "c" * 80, "3"]
    assert once._repr_png_().startswith(b"\x89PNG")
    assert again._repr_png_() == figure()._repr_png_()
    once.savefig(BytesIO(), format="svg")


def test_grid_errors():
    for pictures, options, error, words in [
        ([], {}, ValueError, "pictures: got none"),
        ("a.png", {}, TypeError, "list"),
        ([torch.ones(3, 3) * 2], {}, ValueError, r"pictures\[0\]"),
        ([noise(9, 9), None], {}, TypeError, r"pictures\[1\]"),
        ([noise(9, 9)], dict(titles=["a", "b"]), ValueError, "titles"),
        ([noise(9, 9)], dict(columns=0), ValueError, "columns: got 0"),
        ([noise(9, 9)], dict(size=0), ValueError, "size: got 0"),
    ]:
        with pytest.raises(error, match=words):
            grid(pictures, **options)


# regions


def test_boxes_are_the_rectangles_that_were_drawn():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        x0, y0 = (int(torch.randint(0, 20, (), generator=generator)) for _ in "xy")
        x1, y1 = (start + int(torch.randint(1, 10, (), generator=generator)) for start in (x0, y0))
        heat_map = torch.zeros(30, 60)
        heat_map[y0:y1, x0:x1] = 0.4
        heat_map[y0:y1, x0 + 30 : x1 + 30] = 0.3
        assert to_boxes(heat_map).tolist() == [[x0, y0, x1, y1], [x0 + 30, y0, x1 + 30, y1]]
        assert to_mask(heat_map).sum() == 2 * (x1 - x0) * (y1 - y0)
        assert torch.equal(
            torchvision.ops.masks_to_boxes(to_mask(heat_map, 0.9)[None])[0].long(), to_boxes(heat_map, 0.9)[0] - torch.tensor([0, 0, 1, 1])
        )


def test_masks_of_batches_and_of_nothing():
    batch = torch.stack([torch.rand(6, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    for method in ("share", "otsu"):
        assert torch.equal(to_mask(batch, method=method), torch.stack([to_mask(one, method=method) for one in batch]))
        assert torch.equal(to_mask(batch.half().float() * 1e-6, method=method), to_mask(batch.half(), method=method))
        assert not to_mask(torch.zeros(4, 4), method=method).any()
        assert to_boxes(torch.zeros(4, 4), method=method).shape == (0, 4)
        assert [len(one) for one in to_boxes(torch.zeros(2, 4, 4), method=method)] == [0, 0]
    assert not to_mask(torch.zeros(4, 4), 0).any()
    assert len(to_boxes(torch.eye(6))) == 1


def test_otsu_equals_opencv():
    import cv2

    heat_map = torch.rand(40, 50, generator=torch.Generator().manual_seed(0)) ** 2
    levels = (heat_map / heat_map.max() * 255).round().byte().numpy()
    expected = cv2.threshold(levels, 0, 1, cv2.THRESH_OTSU)[1].astype(bool)
    assert (to_mask(heat_map, method="otsu").numpy() == expected).all()


# the border


def test_importing_loads_nothing_heavy_and_grid_no_pyplot():
    code = """
import sys
from gradcam_nb.imaging import overlay, preprocess, read, regions, figure
assert not {"matplotlib", "cv2", "timm", "ipywidgets", "torchvision"} & set(sys.modules)
figure.grid([read.torch.eye(4)])._repr_png_()
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.data
def test_photos(data):
    photos = sorted((data / "images").glob("*/*.jpg"))[::6]
    assert photos
    theirs = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms()
    for photo in photos:
        picture = read_image(photo)
        torch.testing.assert_close(Preprocess()(photo)[0], theirs(picture), rtol=0, atol=1e-6)
        assert overlay(photo, torch.rand(7, 7), region=Preprocess().region(photo)).size == picture.size
