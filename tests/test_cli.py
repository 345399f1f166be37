"""The command line as a person meets it: a process of its own, files on disk."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

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
    files = {p.suffix: p for p in (tmp_path / "output").iterdir()}
    assert set(files) == {".png", ".npy", ".json"} and all(str(p) in out for p in files.values())
    summary, heat = json.loads(files[".json"].read_text()), np.load(files[".npy"])
    assert heat.shape == (128, 128) and heat.dtype == np.float32 and heat.min() >= 0 and heat.max() == 1
    assert summary["target"]["name"] in out and summary["model"] == "scenes-cnn" and summary["peak"] == list(np.unravel_index(heat.argmax(), heat.shape))
    assert Image.open(files[".png"]).size == tuple(summary["picture_size"])


def test_own_pictures_own_checkpoint(folder, tmp_path):
    out = tmp_path / "a" / "b"
    status, said, err = call("explain", folder / "wide.png", folder / "grey.png", "--model", folder / "mine.pth", "--arch", "resnet10t", "--target", 3, "--layer", "layer3", "--out", out)
    assert status == 0, err  # an untrained model's map may be blank, and says so
    assert sorted(p.name for p in out.iterdir()) == [f"{n}{end}" for n in ("grey", "wide") for end in (".json", "_heat_map.npy", "_overlay.png")]
    summary = json.loads((out / "wide.json").read_text())
    assert (summary["layers"], summary["target"]["index"]) == (["layer3"], 3)
    assert Image.open(out / "wide_overlay.png").size == (500, 300)


BAD = {
    "missing file": (["none.png"], "none.png"),
    "one of two is missing": (["wide.png", "none.png"], "none.png"),
    "a folder": (["."], "folder"),
    "no picture": (["text.jpg"], "text.jpg"),
    "half a picture": (["cut.png"], "cut.png"),
    "smaller than the network takes": (["small.png"], "128 × 128"),
    "unknown model": (["wide.png", "--model", "resnet1000"], "resnet1000"),
    "missing checkpoint": (["wide.png", "--model", "none.pth", "--arch", "resnet18"], "none.pth"),
    "checkpoint without arch": (["wide.png", "--model", "mine.pth"], "arch"),
    "checkpoint of another arch": (["wide.png", "--model", "mine.pth", "--arch", "resnet18"], "do not fit"),
    "checkpoint with code": (["wide.png", "--model", "pickled.pth", "--arch", "resnet10t"], "cannot be read"),
    "unknown method": (["wide.png", "--method", "CamGrad"], "CamGrad"),
    "unknown class": (["wide.png", "--target", "zebra"], "zebra"),
    "class out of range": (["wide.png", "--target", "99"], "pass 0 to 11"),
    "unknown layer": (["wide.png", "--layer", "layer9"], "layer9"),
    "layer without places": (["wide.png", "--layer", "fc"], "'layer4' would serve"),
    "unknown device": (["wide.png", "--device", "abacus"], "abacus"),
    "unknown option": (["wide.png", "--colour", "red"], "--colour"),
    "no picture named": ([], "IMAGE"),
}


@pytest.mark.parametrize("argv, says", BAD.values(), ids=BAD.keys())
def test_bad_input(folder, tmp_path, argv, says):
    status, out, err = call("explain", *argv, "--out", tmp_path / "out", cwd=folder)
    assert status == 2 and says in err and err.count("\n") == 1 and "Traceback" not in err, err
    assert not (tmp_path / "out").exists() and out == ""


def test_out_is_a_file(folder, tmp_path):
    (tmp_path / "out").write_text("mine")
    status, _, err = call("explain", "scene:3", "--out", tmp_path / "out")
    assert status == 2 and "is a file" in err and (tmp_path / "out").read_text() == "mine"


def test_lists():
    assert "GradCAM" in call("methods")[1] and "scenes-vit" in call("models")[1]
    status, out, _ = call("layers", "scenes-vit")
    assert status == 0
    (best,) = [line for line in out.splitlines() if "the one to explain with" in line]
    assert best.startswith("blocks.5.norm1 ")
    assert any(line.startswith("blocks.5 ") and "no gradient" in line for line in out.splitlines())


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
