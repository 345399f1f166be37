"""The one-object interface: the formula written by hand, its figures and files, the model left alone."""

import warnings
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from oracles_libraries import left_as_it_was, warned_line
from PIL import Image
from torch import nn

import gradcam_nb
from gradcam_nb.compat.one_object import GradCAM, print_layername


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("pictures") / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 255, (7, 9, 3), np.uint8)
    Image.fromarray(pixels).resize((150, 110), Image.Resampling.BICUBIC).save(file)
    return file


def network(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=7, **options).eval()


@pytest.fixture(scope="module")
def resnet():
    return network("resnet10t")


@pytest.fixture(scope="module")
def vit():
    return network("vit_tiny_patch16_224", depth=3)


def by_hand(model, layer, x, lay, divisor=8):
    """Mean of the gradients times activations, summed over channels, nothing below max / divisor; then from 0 to 1."""
    kept = {}

    def keep(module, args, output):
        kept["A"] = output.detach().requires_grad_()
        return kept["A"]

    hook = layer.register_forward_hook(keep)
    scores = model(x)
    hook.remove()
    (gradient,) = torch.autograd.grad(scores[0].max(), kept["A"])
    A, dA = lay(kept["A"].detach())[0], lay(gradient)[0]
    M = torch.zeros(A.shape[1:])
    for channel, slope in zip(A, dA):
        M += slope.mean() * channel
    return torch.where(M >= max(M.max() / divisor, 0), M, 0) / M.max()


def tokens(t):
    side = int((t.shape[1] - 1) ** 0.5)
    return t[:, 1:].transpose(1, 2).reshape(len(t), -1, side, side)


def check(cam, expected):
    heatmap = cam()
    assert heatmap is cam.heatmap
    assert heatmap.dtype == np.uint8
    assert heatmap.shape == tuple(expected.shape)
    assert np.abs(heatmap.astype(float) - np.floor(255 * expected.numpy())).max() <= 1
    larger = F.interpolate(expected[None, None], tuple(cam.img.shape[2:]), mode="bilinear")[0, 0]
    assert torch.allclose(cam.enlarged, larger / larger.max(), atol=1e-4)


@pytest.mark.parametrize("layer_idx, name", [(2, "layer4"), (-2, "layer4"), (3, "layer3"), ("layer2", "layer2"), (None, "layer4")])
def test_resnet(resnet, path, layer_idx, name):
    cam = GradCAM(resnet, path, layer_idx, (160, 96))
    assert cam.img.shape == (1, 3, 96, 160)
    check(cam, by_hand(resnet, resnet.get_submodule(name), cam.img, lambda t: t))
    scores = resnet(cam.img)
    assert cam.layer == name
    assert cam.result_class == scores.argmax()
    assert np.isclose(cam.confidence, 100 * scores.softmax(1).max().item(), atol=0.01)


def test_a_number_cuts_the_model_where_theirs_does(resnet, path):
    """The children in front of the cut give the activations, those behind it the score."""
    cam = GradCAM(resnet, path, 3, (128, 128))
    front, back = nn.Sequential(*list(resnet.children())[:-3]), nn.Sequential(*list(resnet.children())[-3:])
    A = front(cam.img).detach().requires_grad_()
    (dA,) = torch.autograd.grad(back(A).max(), A)
    M = (dA.mean((0, 2, 3))[:, None, None] * A[0]).mean(0).detach()
    M[M < M.max() / 8] = 0
    assert np.abs(cam().astype(float) - np.floor(255 * (M / M.max()).numpy())).max() <= 1


@pytest.mark.parametrize("layer_name", ["blocks.1", "blocks.1.drop_path2", "blocks.2.norm1"])
def test_vit(vit, path, layer_name):
    cam = GradCAM(vit, path, layer_name=layer_name, input_shape=(224, 224), model_type="ViT")
    check(cam, by_hand(vit, vit.get_submodule(layer_name), cam.img, tokens))


def test_vit_by_number(vit, path):
    cam = GradCAM(vit, path, 4, (224, 224), "ViT")
    with pytest.warns(UserWarning, match="blocks.2.norm1"):
        heatmap = cam()
    warned_line(lambda: cam(), "blocks.2.norm1")
    assert heatmap.shape == (14, 14)
    assert (heatmap == GradCAM(vit, path, "blocks.2.norm1")()).all()
    with pytest.raises(ValueError, match=r"layer_idx: got 2, but 'fc_norm' gives \(1, 192\).* pass 4 \(blocks\), .* or a layer's name"):
        GradCAM(vit, path, 2)()


def test_vit_that_pools_its_tokens(path):
    model = network("vit_tiny_patch16_224", depth=2, global_pool="avg", class_token=False)
    cam = GradCAM(model, path, 4, model_type="ViT")
    check(cam, by_hand(model, model.blocks, cam.img, lambda t: t.transpose(1, 2).reshape(1, -1, 14, 14)))


def test_swin(path):
    model = network("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1))
    cam = GradCAM(model, path, 1, model_type="SwinT")
    check(cam, by_hand(model, model.norm, cam.img, lambda t: t.permute(0, 3, 1, 2)))


@pytest.mark.parametrize("divisor", [float("inf"), 20, 8, 2, 1.5])
def test_threshold(resnet, path, divisor):
    cam = GradCAM(resnet, path, 2, 128, heatmap_threshold=divisor)
    check(cam, by_hand(resnet, resnet.layer4, cam.img, lambda t: t, divisor))
    native = gradcam_nb.GradCAM(resnet, -3)(cam.img, threshold=1 / divisor)[0]
    assert torch.allclose(cam.enlarged, native, atol=1e-6)
    again = GradCAM(resnet, path, 2, 128, relu_threshold=3)
    assert (again(divisor) == cam.heatmap).all()
    assert (again() == GradCAM(resnet, path, 2, 128)(3)).all()


@pytest.mark.parametrize("name, layer, lay", [("vit_tiny", "blocks.10.drop_path2", tokens), ("mobilenet_v2", "features", lambda t: t)])
def test_real_weights(name, layer, lay, data):
    import demo_models

    model = getattr(demo_models, f"{name}_imagenet")(data / "models")
    cam = GradCAM(model, data / "images/coral/parrot.jpg", layer_name=layer)
    check(cam, by_hand(model, model.get_submodule(layer), cam.img, lay))
    assert cam.result_class == 88  # macaw
    assert cam.confidence > 90


def test_target(resnet, path):
    cam = GradCAM(resnet, path, 2, 128)
    maps = [cam(target=c) for c in range(7)]
    top = maps[cam.result_class]
    assert (top == cam()).all()
    assert any((m != top).any() for m in maps)


def test_grey_and_in_memory(resnet, path, tmp_path):
    grey = Image.open(path).convert("L")
    grey.save(tmp_path / "grey.png")
    from_file = GradCAM(resnet, tmp_path / "grey.png", input_size=64)
    in_memory, as_rgb = (GradCAM(resnet, img_value=picture, input_size=64) for picture in (grey, grey.convert("RGB")))
    assert torch.equal(from_file.img, in_memory.img)
    assert torch.equal(from_file.img, as_rgb.img)
    assert torch.equal(GradCAM(resnet, img_value=as_rgb.img[0]).img, as_rgb.img)


def test_transform(resnet, path):
    from torchvision import transforms as T

    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    transform = T.Compose([T.Resize((96, 96)), T.ToTensor(), T.Normalize(mean, std)])
    cam = GradCAM(resnet, path, 2, transform=transform)
    assert torch.equal(cam.img[0], transform(Image.open(path)))
    resized = np.asarray(Image.open(path).resize((96, 96), Image.Resampling.BILINEAR))
    own = GradCAM(resnet, path, 2, transform=lambda picture: transform(picture))  # its numbers cannot be seen
    for given, denormalize in ((cam, None), (own, (mean, std))):
        files = panels(given, denormalize)
        assert np.abs(np.asarray(files["original"]).astype(int) - resized).max() <= 2
    stretched = np.asarray(panels(own, None)["original"])
    assert (stretched.min(), stretched.max()) == (0, 255)


def panels(cam, denormalize=None):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        cam.imposing_visualization(f"{folder}/a.png", denormalize, save_panels=True)
        return {p.stem.partition("-")[2]: Image.open(p).copy() for p in Path(folder).glob("a-*.png")}


def test_files(resnet, path, tmp_path):
    cam = GradCAM(resnet, path, 2, (160, 96))
    cam.imposing_visualization(tmp_path / "one/out.png")
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["out.png"]
    cam.imposing_visualization(str(tmp_path / "two/out"), save_panels=True)
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == [
        "out-colormap.png",
        "out-heatmap.png",
        "out-original.png",
        "out-overlapped.png",
        "out.png",
    ]
    assert all(Image.open(p).size == (160, 96) for p in (tmp_path / "two").glob("out-*.png"))
    grey = np.asarray(Image.open(tmp_path / "two/out-heatmap.png"))
    assert grey.ndim == 2
    assert np.abs(grey - 255 * cam.enlarged.numpy()).max() <= 1
    cam.origin_cam_visualization(tmp_path / "three/small.pdf")
    assert (tmp_path / "three/small.pdf").stat().st_size


def test_files_all_or_none(resnet, path, tmp_path, monkeypatch):
    cam = GradCAM(resnet, path, 2, 64)
    for bad in ("out.docx", tmp_path):
        with pytest.raises(ValueError, match="save_path"):
            cam.imposing_visualization(tmp_path / bad)
    (tmp_path / "out.png").write_text("mine")
    saved = Image.Image.save

    def full(image, file, *args, **options):
        if "colormap" in str(file):
            raise OSError("disk full")
        return saved(image, file, *args, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="disk full"):
        cam.imposing_visualization(tmp_path / "out.png", save_panels=True)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("out.png", "mine")]


def test_figures_leave_nothing_behind(resnet, path):
    before = dict(matplotlib.rcParams)
    cam = GradCAM(resnet, path, 2, 64)
    figures = cam.origin_cam_visualization(), cam.imposing_visualization()  # before a call: it is made
    for figure in figures:
        assert isinstance(figure, matplotlib.figure.Figure)
        assert figure._repr_png_()[:4] == b"\x89PNG"
    assert len(figures[1].axes) == 4
    assert cam.heatmap.shape == (2, 2)
    assert dict(matplotlib.rcParams) == before
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == []


def test_a_figure_shows_itself_once_in_each_cell(resnet, path, monkeypatch):
    """In a notebook: where it is made, not again as that cell's value, and again in a later cell that asks for it."""
    shell, shown = SimpleNamespace(parent_header={"cell": 1}), []
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    monkeypatch.setattr(import_module("IPython.display"), "display", lambda data, raw: shown.append(data))
    figure = GradCAM(resnet, path, 2, 64).origin_cam_visualization()
    assert [list(data) for data in shown] == [["image/png"]]
    figure._ipython_display_()
    assert len(shown) == 1
    shell.parent_header = {"cell": 2}
    figure._ipython_display_()
    assert len(shown) == 2


def test_the_model_is_as_it_was_and_nothing_is_printed(path, capsys):
    model = network("resnet10t").train()
    with left_as_it_was(model), torch.no_grad():
        GradCAM(model, path, 2, 64)()
    assert capsys.readouterr() == ("", "")


def test_what_is_printed_if_asked_for(resnet, path, capsys):
    GradCAM(resnet, path, 2, 64, verbose=True)()
    assert "layer 'layer4': activations (1, 512, 2, 2), map (2, 2), zero below 0.125 of its maximum\n" in capsys.readouterr().out
    print_layername(resnet)
    assert "layer4.0.conv1\n" in capsys.readouterr().out


def test_nothing_speaks_for_it(path):
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    nn.init.constant_(model[4].weight, -1.0)
    with pytest.warns(UserWarning, match="only against it"):
        assert not GradCAM(model, path, 3, 32)().any()
    says = r"'2' gives \(1, 2, 1, 1\), which has no places on the picture; pass 3 \(1\), 4 \(0\), or a layer's name"
    with pytest.raises(ValueError, match=says):
        GradCAM(model, path, 2, 32)()


BAD = {
    "no picture": (dict(img_path=None), "got neither"),
    "two pictures": (dict(img_value=Image.new("RGB", (9, 9))), "got both"),
    "missing file": (dict(img_path="none.png"), "none.png"),
    "zero": (dict(layer_idx=0), "layer_idx: got 0, but the model has 10 children; pass 2 .layer4., 3 .layer3."),
    "too far": (dict(layer_idx=10), "pass 2 .layer4."),
    "pooled": (dict(layer_idx=1), "'global_pool' gives .1, 512., which has no places"),
    "unknown layer": (dict(layer_name="layer9"), "layer9"),
    "two layers": (dict(layer_idx=2, layer_name="layer4"), "both were passed"),
    "two sizes": (dict(input_size=64, input_shape=64), "both were passed"),
    "unknown type": (dict(model_type="RNN"), "pass one of Normal, ViT, DeiT, SwinT"),
    "threshold": (dict(heatmap_threshold=1), "above 1"),
    "threshold as text": (dict(relu_threshold="8"), "above 1"),
    "transform": (dict(transform=lambda picture: picture), "transform: gave Image"),
    "batch": (dict(img_path=None, img_value=torch.zeros(2, 3, 9, 9)), "one picture is a tensor"),
    "another size": (dict(img_path=None, img_value=torch.zeros(1, 2, 64, 64)), "the model failed on an input of"),
}


@pytest.mark.parametrize("how, says", BAD.values(), ids=BAD.keys())
def test_errors(resnet, path, how, says):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=says):
        GradCAM(resnet, **(dict(img_path=path) | how))()
