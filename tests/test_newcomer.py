"""The path of somebody new: the code of Start and of the README, in order, with nothing but what the package itself requires."""
import base64
import io
import os
import re
import subprocess
import sys
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml
from nbclient import NotebookClient
from packaging.requirements import Requirement
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
START = next(entry for entry in yaml.safe_load((ROOT / "_quarto.yml").read_text())["book"]["chapters"] if isinstance(entry, dict) and entry["part"] == "Start")["chapters"]
DATA = Path(os.environ.get("GRADCAM_NB_DATA", ROOT.parent / "shared/data"))
# The kernel that runs the cells is no part of the package.
KERNEL = ["ipykernel"]
HIDE = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, path=None, target=None: None if path is None and name in {names} else find(name, path, target)
"""


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


def hidden():
    """What developers have, and a newcomer has not."""
    there = required(["gradcam_nb", *KERNEL])
    return sorted(name for name, dists in packages_distributions().items() if not {re.sub(r"[-_.]+", "-", dist).lower() for dist in dists} & there and name not in sys.stdlib_module_names)


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "sitecustomize.py").write_text(HIDE.format(names=set(hidden())))
    return folder


def pictures(cell):
    for output in cell.get("outputs", []):
        if "image/png" in output.get("data", {}):
            yield np.asarray(Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"]))).convert("RGB")).astype(int)


def test_what_is_hidden():
    names = set(hidden())
    assert {"nbdev", "fastcore", "pytest", "transformers", "pytorch_grad_cam", "captum", "playwright"} <= names
    assert not names & {"torch", "torchvision", "timm", "numpy", "matplotlib", "PIL", "cv2", "ipywidgets", "anywidget", "gradcam_nb", "pandas", "tqdm"}


@pytest.mark.parametrize("page", START, ids=lambda page: Path(page).stem)
def test_start(page, newcomer, monkeypatch):
    """Each page of Start runs, and gives the pictures that it shows."""
    shown = nbformat.read(ROOT / page, 4)
    book = nbformat.read(ROOT / page, 4)
    for cell in book.cells:
        if cell.cell_type == "code" and re.search(r"^#\| *(slow|net|cuda)\b", cell.source, re.M):
            cell.source = "pass"
    monkeypatch.setenv("PYTHONPATH", str(newcomer))
    NotebookClient(book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str((ROOT / page).parent)}}).execute()
    compared = 0
    for before, now in zip(shown.cells, book.cells):
        if now.cell_type != "code" or now.source == "pass":
            continue
        pairs = list(pictures(before)), list(pictures(now))
        # Where the real weights and photos are not there, a cell says so in place of its picture.
        assert len(pairs[0]) == len(pairs[1]) or not (DATA.exists() or pairs[1])
        for one, other in zip(*pairs):
            assert one.shape == other.shape and np.abs(one - other).mean() < 2, now.source
            compared += 1
    assert compared or Path(page).stem == "install"


def test_readme(newcomer, tmp_path, monkeypatch):
    """The README's Python, in order, and the pictures that it shows."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S))
    code += "\nassert tuple(heat_maps.shape) == (4, 224, 224) and 0 <= heat_maps.min() and heat_maps.max() <= 1"
    code += "\nopen('shown.png', 'wb').write(explanation.show()._repr_png_())"
    monkeypatch.setenv("PYTHONPATH", str(newcomer))
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=tmp_path)
    assert sorted(file.suffix for file in (tmp_path / "output").iterdir()) == [".json", ".npy", ".png"]
    one, other = (np.asarray(Image.open(file).convert("RGB")).astype(int) for file in (tmp_path / "shown.png", ROOT / "book/first_picture.png"))
    assert one.shape == other.shape and np.abs(one - other).mean() < 2
