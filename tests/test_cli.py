"""The command line as a person meets it: a process of its own, files on disk."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from oracles_libraries import correlation, warned_line
from PIL import Image

from gradcam_nb.cli import main

TOOL = Path(sys.executable).with_name("gradcam-nb")


def call(*argv, cwd=None):
    done = subprocess.run([TOOL, *map(str, argv)], capture_output=True, text=True, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (300, 500, 3), np.uint8)).save(folder / "wide.png")
    Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(folder / "small.png")
    Image.fromarray(rng.integers(0, 255, (200, 200), np.uint8)).save(folder / "grey.png")
    (folder / "text.jpg").write_text("this is no picture")
    whole = (folder / "wide.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=5)
    torch.save(model.state_dict(), folder / "mine.pth")
    torch.save(model, folder / "pickled.pth")  # code, not tensors: must not be loaded
    return folder


def test_demo(tmp_path):
    status, out, err = call("demo", "--out", tmp_path / "output")
    assert (status, err) == (0, "")
    written = sorted((tmp_path / "output").iterdir())
    assert [p.name for p in written if str(p) not in out] == []
    assert {p.name.partition(".")[0].removesuffix("_overlay").removesuffix("_heat_map") for p in written} == {"photo_cat", "scene_3"}
    files = {p.suffix: p for p in written if p.name.startswith("scene_3")}
    assert set(files) == {".png", ".npy", ".json"}
    summary, heat = json.loads(files[".json"].read_text()), np.load(files[".npy"])
    assert (heat.shape, heat.dtype) == ((128, 128), np.float32)
    assert heat.min() >= 0
    assert heat.max() == 1
    assert summary["target"]["name"] in out
    assert summary["model"] == "scenes-cnn"
    assert summary["peak"] == list(np.unravel_index(heat.argmax(), heat.shape))
    assert Image.open(files[".png"]).size == tuple(summary["picture_size"])


def test_own_pictures_own_checkpoint(folder, tmp_path):
    out = tmp_path / "a" / "b"
    pictures, model = [folder / "wide.png", folder / "grey.png"], ["--model", folder / "mine.pth", "--arch", "resnet10t"]
    status, said, err = call("explain", *pictures, *model, "--target", 3, "--layer", "layer3", "--out", out)
    assert status == 0, err  # an untrained model's map may be blank, and says so
    written = [f"{name}{end}" for name in ("grey", "wide") for end in (".json", "_heat_map.npy", "_overlay.png")]
    assert sorted(p.name for p in out.iterdir()) == written
    summary = json.loads((out / "wide.json").read_text())
    assert (summary["layers"], summary["target"]["index"]) == (["layer3"], 3)
    assert Image.open(out / "wide_overlay.png").size == (500, 300)


SCENES = ["--model", "scenes-cnn"]
BAD = {
    "missing file": (["none.png"], "none.png"),
    "one of two is missing": (["wide.png", "none.png"], "none.png"),
    "a folder": (["."], "folder"),
    "no picture": (["text.jpg"], "text.jpg"),
    "half a picture": (["cut.png"], "cut.png"),
    "smaller than the network takes": (["small.png", *SCENES, "--no-upscale"], "128 × 128"),
    "unknown model": (["wide.png", "--model", "resnet1000"], "resnet1000"),
    "missing checkpoint": (["wide.png", "--model", "none.pth", "--arch", "resnet18"], "none.pth"),
    "checkpoint without arch": (["wide.png", "--model", "mine.pth"], "arch"),
    "checkpoint of another arch": (["wide.png", "--model", "mine.pth", "--arch", "resnet18"], "do not fit"),
    "checkpoint with code": (["wide.png", "--model", "pickled.pth", "--arch", "resnet10t"], "cannot be read"),
    "unknown method": (["wide.png", "--method", "CamGrad"], "CamGrad"),
    "unknown class": (["wide.png", *SCENES, "--target", "zebra"], "zebra"),
    "class out of range": (["wide.png", *SCENES, "--target", "99"], "pass 0 to 11"),
    "unknown layer": (["wide.png", *SCENES, "--layer", "layer9"], "layer9"),
    "layer without places": (["wide.png", *SCENES, "--layer", "fc"], "'layer4' would serve"),
    "unknown device": (["wide.png", "--device", "abacus"], "abacus"),
    "unknown option": (["wide.png", "--colour", "red"], "--colour"),
    "no picture named": ([], "IMAGE"),
}


def inside(*argv):
    """`call` without a process of its own, which would take seconds."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(one) for one in argv])
        except SystemExit as stop:  # argparse's own errors
            status = stop.code
    return status, out.getvalue(), err.getvalue()


FROM_THE_SHELL = ("missing file", "unknown option")  # an error of the command's own, and one of argparse's


@pytest.mark.parametrize("run, case", [(call, case) for case in FROM_THE_SHELL] + [(inside, case) for case in BAD])
def test_bad_input(folder, tmp_path, monkeypatch, run, case):
    monkeypatch.chdir(folder)
    argv, says = BAD[case]
    status, out, err = run("explain", *argv, "--out", tmp_path / "out")
    assert status == 2, err
    assert says in err, err
    assert err.count("\n") == 1, err
    assert "Traceback" not in err, err
    assert not (tmp_path / "out").exists()
    assert out == ""


def test_out_is_a_file(folder, tmp_path):
    (tmp_path / "out").write_text("mine")
    status, _, err = call("explain", "scene:3", "--out", tmp_path / "out")
    assert status == 2
    assert "is a file" in err
    assert (tmp_path / "out").read_text() == "mine"


def test_threshold(tmp_path):
    for share in ("0", "0.5"):
        assert main(["explain", "scene:3", "--threshold", share, "--out", str(tmp_path / share)]) == 0
    plain, cut = (np.load(tmp_path / share / "scene_3_heat_map.npy") for share in ("0", "0.5"))
    assert cut.max() == 1
    assert 0 < (cut > 0).mean() < (plain > 0).mean()


def test_lists():
    assert "scenes-vit" in call("models")[1]
    status, out, _ = call("layers", "scenes-vit")
    assert status == 0
    (best,) = [line for line in out.splitlines() if "the one to explain with" in line]
    assert best.startswith("blocks.5.norm1 ")
    (last,) = [line for line in out.splitlines() if line.startswith("blocks.5 ")]
    assert "no gradient" in last


def test_the_methods_with_kind_cost_and_paper():
    from gradcam_nb import BaseCAM, list_methods
    from gradcam_nb.catalogue import find_method

    status, out, err = call("methods")
    assert (status, err) == (0, "")
    head, *rows = out.splitlines()
    assert head.split() == ["method", "kind", "cost", "paper"]
    kind, cost, paper = (head.index(word) for word in ("kind", "cost", "paper"))
    cells = [(row[:kind].strip(), row[kind:cost].strip(), row[cost:paper].strip(), row[paper:]) for row in rows]
    taken = {name: item for name, item in list_methods().items() if issubclass(item, BaseCAM)}
    assert cells == [(name, item.kind, item.cost, item.paper) for name, item in taken.items()]
    for name, *_ in cells:
        assert find_method(name) is taken[name]


def test_a_layer_that_never_ran():
    from gradcam_nb import explain, load_model

    model = load_model("scenes-cnn")
    model.spare = torch.nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="'spare' never ran"):
        explain("scene:3", model, layer="spare")


def test_a_stop_while_saving_leaves_nothing_half_written(tmp_path, monkeypatch):
    from gradcam_nb import explain

    e = explain("scene:3")
    monkeypatch.setattr(np, "save", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        e.save(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


THEIRS = dict(
    gradcam="GradCAM",
    hirescam="HiResCAM",
    xgradcam="XGradCAM",
    layercam="LayerCAM",
    gradcamelementwise="GradCAMElementWise",
    ablationcam="AblationCAM",
)


def script(model, layer, rgb, method, aug_smooth=False):
    """What pytorch-grad-cam's example script draws, with its own functions: the map; over the picture, guided backpropagation, both."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.image import deprocess_image, preprocess_image, show_cam_on_image

    x = preprocess_image(rgb, mean=[0.5] * 3, std=[0.5] * 3)
    with getattr(pytorch_grad_cam, THEIRS[method])(model=model, target_layers=[model.get_submodule(layer)]) as cam:
        cam.batch_size = 32
        heat = cam(input_tensor=x, targets=None, aug_smooth=aug_smooth)[0]
    detail = pytorch_grad_cam.GuidedBackpropReLUModel(model=model, device="cpu")(x, target_category=None)
    return heat, show_cam_on_image(rgb, heat, use_rgb=True), deprocess_image(detail), deprocess_image(heat[..., None] * detail)


@pytest.mark.parametrize(
    "method, flags",
    [*((method, []) for method in THEIRS), ("gradcam", ["--aug-smooth"])],
    ids=lambda v: v if isinstance(v, str) else "".join(v) or "plain",
)
def test_cam_draws_what_the_script_draws(tmp_path, capsys, method, flags):
    from gradcam_nb import load_model
    from gradcam_nb.ask import read_picture
    from gradcam_nb.compat.pytorch_grad_cam.script import cam_pictures

    picture = read_picture("scene:3").crop((0, 0, 128, 100)).resize((160, 125))
    picture.save(tmp_path / "picture.png")
    folder = tmp_path / "a/b"
    asked = {
        "--image-path": tmp_path / "picture.png",
        "--model": "scenes-cnn",
        "--method": method,
        "--device": "cpu",
        "--output-dir": folder,
    }
    assert main(["cam", *(str(word) for pair in asked.items() for word in pair), *flags]) == 0
    out, err = capsys.readouterr()
    files = [folder / f"{method}_{name}.jpg" for name in ("cam", "gb", "cam_gb")]
    assert sorted(folder.iterdir()) == sorted(files)
    assert [file for file in files if str(file) not in out] == []
    assert err == "" or method == "ablationcam"  # which has a bar
    how, model = {flag[2:].replace("-", "_"): True for flag in flags}, load_model("scenes-cnn")
    three = cam_pictures(picture, model, method, **how)
    heat, *theirs = script(model, "layer4", np.float32(picture) / 255, method, **how)
    assert correlation(three.heat_map, heat) >= 0.9999
    for file, mine, other in zip(files, (three.cam, three.gb, three.cam_gb), theirs):
        assert correlation(mine, other) >= 0.998, file.name  # their mean of views does not reach 1
        written = np.asarray(Image.open(file))
        assert written.shape == (125, 160, 3)
        assert correlation(written, other) >= 0.99, file.name  # a JPEG is a little less


def test_cam_smooths_by_the_first_component(tmp_path, monkeypatch):
    from gradcam_nb import GradCAM, load_model, preprocess_for
    from gradcam_nb.ask import read_picture
    from gradcam_nb.compat.pytorch_grad_cam import script

    drawn, draw = [], script.cam_pictures

    def kept(*asked, **how):
        drawn.append(draw(*asked, **how))
        return drawn[-1]

    monkeypatch.setattr(script, "cam_pictures", kept)
    asked = {"--layer": "layer3", "--target": "dotted star", "--output-dir": str(tmp_path)}
    assert main(["cam", "--eigen-smooth", "--aug-smooth", *(word for pair in asked.items() for word in pair)]) == 0
    model = load_model("scenes-cnn")
    x = preprocess_for(model)(read_picture("scene:3"))
    (three,), expected = drawn, GradCAM(model, "layer3")(x, 10, eigen_smooth=True, aug_smooth=True)[0]
    assert torch.allclose(three.heat_map, expected, atol=1e-6)


def test_cam_from_the_shell(tmp_path):
    status, out, err = call("cam", "--image-path", "scene:3", "--use-cuda", "--output-dir", "new", cwd=tmp_path)
    assert status == 0
    assert "scenes-cnn saw" in out
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["gradcam_cam.jpg", "gradcam_cam_gb.jpg", "gradcam_gb.jpg"]
    if not torch.cuda.is_available():
        assert err == "gradcam-nb: --use-cuda: there is no CUDA device; running on the CPU\n"


SPELLINGS = """gradcam hirescam scorecam gradcam++ ablationcam xgradcam eigencam eigengradcam layercam fullgrad gradcamelementwise
    kpcacam shapleycam finercam randomcam fem segeigencam refinecam""".split()


@pytest.mark.parametrize("method", SPELLINGS)
def test_cam_knows_the_spelling(method):
    import warnings

    from gradcam_nb.compat.pytorch_grad_cam.script import cam_pictures

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3),
        torch.nn.ReLU(),
        torch.nn.Conv2d(6, 4, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 5),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of random weights a map may be blank
        for how in ({}, dict(target="2", aug_smooth=True)):
            three = cam_pictures(np.random.default_rng(0).random((24, 32, 3)), model, method, **how)
            assert three.heat_map.isfinite().all()
            for picture in (three.cam, three.gb, three.cam_gb):
                assert picture.size == (32, 24)


def test_cam_of_a_transformer(folder):
    """It takes one size and has no ReLU: both are said, in the name of the line that asked."""
    from gradcam_nb.compat.pytorch_grad_cam.script import cam_pictures

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=5)
    with pytest.warns(UserWarning) as said:
        three = cam_pictures(folder / "wide.png", model, target=1)
    assert [str(w.message).partition(":")[0] for w in said if "blank" not in str(w.message)] == [
        "the network takes no picture of 500 × 300",
        "guided backpropagation of this network is its plain gradient",
    ]
    assert three.cam.size == (224, 224)
    assert three.cam_gb.size == (224, 224)
    assert three.layers == ["blocks.1.norm1"]
    assert model.training
    for message in ("the network takes no picture", "guided backpropagation of this network"):
        warned_line(lambda: cam_pictures(folder / "wide.png", model, target=1), message)


def test_cam_of_a_grey_network(folder):
    from gradcam_nb.compat.pytorch_grad_cam.script import cam_pictures

    torch.manual_seed(0)
    grey = timm.create_model("resnet10t", num_classes=5, in_chans=1)
    assert cam_pictures(folder / "wide.png", grey).gb.size == (500, 300)


CAM_BAD = {
    "missing file": (["--image-path", "none.png"], "none.png"),
    "no picture": (["--image-path", "text.jpg"], "text.jpg"),
    "unknown method": (["--method", "CamGrad"], "CamGrad"),
    "unknown model": (["--model", "resnet1000"], "resnet1000"),
    "checkpoint without arch": (["--model", "mine.pth"], "arch"),
    "unknown class": (["--target", "zebra"], "zebra"),
    "unknown layer": (["--layer", "layer9"], "layer9"),
    "layer without places": (["--layer", "fc"], "'layer4' would serve"),
    "unknown device": (["--device", "abacus"], "abacus"),
    "out is a file": (["--output-dir", "text.jpg"], "is a file; pass a folder"),
    "stray word": (["cat.jpg"], "cat.jpg"),
}


@pytest.mark.parametrize("argv, says", CAM_BAD.values(), ids=CAM_BAD.keys())
def test_cam_bad_input(folder, tmp_path, capsys, monkeypatch, argv, says):
    monkeypatch.chdir(folder)
    try:
        status = main(["cam", "--output-dir", str(tmp_path / "out"), *argv])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert status == 2
    assert says in err
    assert err.count("\n") == 1
    assert out == ""
    assert not (tmp_path / "out").exists()


def test_cam_writes_all_or_none(tmp_path, capsys, monkeypatch):
    saved = Image.Image.save

    def full(image, file, *args, **options):
        if "cam_gb" in str(file):
            raise OSError("disk full")
        return saved(image, file, *args, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    assert main(["cam", "--output-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "gradcam-nb: disk full\n"
    assert list(tmp_path.iterdir()) == []
