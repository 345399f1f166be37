"""The path of somebody new: the code of Start and of the README, in order, with nothing but what the package and its samples require."""

import base64
import io
import json
import os
import re
import subprocess
import sysconfig
import venv
from configparser import ConfigParser
from importlib.metadata import distribution
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from packaging.requirements import Requirement
from PIL import Image
from run_pages import START

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("GRADCAM_NB_DATA", ROOT.parent / "shared/data"))
SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
# As the README says, `gradcam-nb[samples]`. The kernel that runs the cells is no part of it.
SAMPLES = [Requirement(one).name for one in SETTINGS["DEFAULT"]["samples_requirements"].split()]
KERNEL = ["ipykernel"]


def required(names):
    """The distributions that these need, and those that those need."""
    found, ahead = set(), list(names)
    while ahead:
        name = re.sub(r"[-_.]+", "-", ahead.pop()).lower()
        if name in found:
            continue
        try:
            needs = distribution(name).requires or []
        except ImportError:
            continue
        found.add(name)
        ahead += [one.name for one in map(Requirement, needs) if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory):
    """The Python of a fresh environment: in it the package, the distributions that it and its samples require, and no other."""
    folder = tmp_path_factory.mktemp("newcomer")
    venv.create(folder, with_pip=False)
    paths = dict(base=str(folder), platbase=str(folder))
    there, packages = Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("purelib", vars=paths))
    for name in required(["gradcam_nb", *SAMPLES, *KERNEL]) - {"gradcam-nb"}:
        # A package is linked, not copied: torch alone has gigabytes.
        tops = {file.parts[0] for file in distribution(name).files} - {"..", "__pycache__"}
        for top in tops:
            if not (packages / top).exists():
                (packages / top).symlink_to(there / top)
    (packages / "gradcam_nb").symlink_to(ROOT / "gradcam_nb")
    python = Path(sysconfig.get_path("scripts", vars=paths)) / "python"
    spec = folder / "share/jupyter/kernels/newcomer"
    spec.mkdir(parents=True)
    start = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps(dict(argv=start, display_name="newcomer", language="python")))
    return python


def pixels(file):
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def pictures(cell):
    for output in cell.get("outputs", []):
        if "image/png" in output.get("data", {}):
            yield pixels(io.BytesIO(base64.b64decode(output["data"]["image/png"])))


def same_picture(one, other):
    """Equal, but for what another version of matplotlib or Pillow draws a little differently."""
    assert one.shape == other.shape
    assert np.abs(one - other).mean() < 2


def test_what_is_there(newcomer):
    look = "import importlib.util as i, sys; print(*[name for name in sys.argv[1:] if i.find_spec(name)])"

    def found(names):
        return set(subprocess.run([newcomer, "-c", look, *names], capture_output=True, text=True, check=True).stdout.split())

    missing = {"nbdev", "fastcore", "pytest", "transformers", "pytorch_grad_cam", "captum", "playwright", "sklearn", "jupyterlab"}
    assert found(missing) == set()
    needed = {
        "torch",
        "torchvision",
        "timm",
        "numpy",
        "matplotlib",
        "PIL",
        "cv2",
        "ipywidgets",
        "anywidget",
        "gradcam_nb",
        "pandas",
        "tqdm",
    }
    assert found(needed) == needed


@pytest.mark.parametrize("page", START, ids=lambda page: Path(page).stem)
def test_start(page, newcomer, monkeypatch):
    """Each page of Start runs, and gives the pictures that it shows."""
    shown = nbformat.read(ROOT / page, 4)
    book = nbformat.read(ROOT / page, 4)
    for cell in book.cells:
        if cell.cell_type == "code" and re.search(r"^#\| *(slow|net|cuda)\b", cell.source, re.M):
            cell.source = "pass"
    monkeypatch.setenv("JUPYTER_PATH", str(newcomer.parent.parent / "share/jupyter"))
    NotebookClient(book, timeout=120, kernel_name="newcomer", resources={"metadata": {"path": str((ROOT / page).parent)}}).execute()
    compared = 0
    for before, now in zip(shown.cells, book.cells):
        if now.cell_type != "code" or now.source == "pass":
            continue
        pairs = list(pictures(before)), list(pictures(now))
        # Where the real weights and photos are not there, a cell says so in place of its picture.
        if DATA.exists() or pairs[1]:
            assert len(pairs[0]) == len(pairs[1]), now.source
        for one, other in zip(*pairs):
            same_picture(one, other)
            compared += 1
    assert compared or Path(page).stem == "install"


def test_readme(newcomer, tmp_path):
    """The README's Python, in order, and the pictures that it shows."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S))
    code += "\nassert tuple(heat_maps.shape) == (4, 224, 224)"
    code += "\nassert 0 <= heat_maps.min() and heat_maps.max() <= 1"
    code += "\nopen('shown.png', 'wb').write(explanation.show()._repr_png_())"
    subprocess.run([newcomer, "-W", "ignore", "-c", code], check=True, cwd=tmp_path)
    assert sorted(file.suffix for file in (tmp_path / "output").iterdir()) == [".json", ".npy", ".png"]
    same_picture(pixels(tmp_path / "shown.png"), pixels(ROOT / "book/first_picture.png"))
