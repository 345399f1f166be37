"""The house keeps its floors: who imports whom, what importing loads, what the book holds."""

import ast
import contextlib
import io
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from ipywidgets import Widget

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gradcam_nb"
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)

# From the ground up: a module imports only from its own floor's room or from rooms on floors below.
FLOORS = [
    ["smoothing", "targets", "reshape", "imaging"],
    ["engine", "samples"],
    ["core", "models"],
    ["methods", "metrics", "explanation", "ask"],
    ["catalogue"],
    ["explain", "compare"],
    ["widgets", "compat"],
    ["cli"],
]


def floor(module):
    for level, names in enumerate(FLOORS):
        for name in names:
            if module == name or module.startswith(name + "."):
                return level, name
    raise AssertionError(f"{module}: no floor of the house; name it in FLOORS and in CONTRIBUTING.md")


def modules():
    return [p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "__main__.py", "_modidx.py")]


def imports(path):
    """What a module imports of this package, inside functions too: (a module or a room, the name that is taken from it)."""
    here = path.relative_to(PACKAGE).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "gradcam_nb":
                    yield alias.name.removeprefix("gradcam_nb").strip("."), ""
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "gradcam_nb"):
            base = list(here[: len(here) - node.level]) if node.level else []
            source = ".".join([*base, *(node.module or "").removeprefix("gradcam_nb").split(".")]).strip(".")
            for alias in node.names:
                inner = f"{source}.{alias.name}".strip(".")
                is_module = (PACKAGE / inner.replace(".", "/")).is_dir() or (PACKAGE / f"{inner.replace('.', '/')}.py").is_file()
                yield (inner, "") if is_module else (source, alias.name)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_from_below(path):
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    level, room = floor(module)
    for other, _ in imports(path):
        assert other, f"{module} imports the package that it is a part of; name the module"
        other_level, other_room = floor(other)
        assert other != room or other == module, f"{module} imports its own room; name the module"
        assert other_level < level or other_room == room, f"{module} imports {other}, which is not below it"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_uses_anothers_private_name(path):
    taken = [(other, name) for other, name in imports(path) if name.startswith("_") or other.split(".")[-1].startswith("_")]
    assert not taken
    tree, own = ast.parse(path.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            own |= {alias.asname or alias.name for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in own:
            assert not re.match(r"_[a-z]", node.attr), f"{node.value.id}.{node.attr}"


def test_every_module_has_its_notebook():
    notebooks = {str(p.relative_to(ROOT / "nbs").with_suffix("")) for p in NOTEBOOKS}
    assert {str(p.relative_to(PACKAGE).with_suffix("")) for p in modules()} <= notebooks


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_holds_one_idea(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 215, "grown past 200 lines (and a header)"


def test_importing_loads_nothing_heavy():
    code = "import sys, gradcam_nb; print([m for m in ('matplotlib', 'ipywidgets', 'cv2', 'ray', 'timm', 'nbdev', 'fastcore') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_all_names_are_there():
    import gradcam_nb

    assert len(set(gradcam_nb.__all__)) == len(gradcam_nb.__all__) and all(hasattr(gradcam_nb, name) for name in gradcam_nb.__all__)


def chapters(entries):
    for entry in entries:
        if isinstance(entry, dict):
            yield from chapters(entry["chapters"])
        else:
            yield entry


def test_every_notebook_is_a_chapter_once():
    listed = list(chapters(yaml.safe_load((ROOT / "_quarto.yml").read_text())["book"]["chapters"]))
    assert len(listed) == len(set(listed))
    assert {name for name in listed if name.endswith(".ipynb")} == {str(p.relative_to(ROOT)) for p in NOTEBOOKS}
    assert all((ROOT / name).is_file() for name in listed)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_notebook(path, monkeypatch):
    """Links resolve, outputs are small and name no machine, and the book's filter leaves no directive."""
    notebook = nbformat.read(path, 4)
    assert path.stat().st_size < 1_500_000
    for cell in notebook.cells:
        if cell.cell_type == "code" and re.search(r"^(import|from) ", cell.source, flags=re.M):
            others = [node for node in ast.parse(cell.source).body if not isinstance(node, (ast.Import, ast.ImportFrom))]
            assert not others, f"imports and other code share a cell, which the book's filter would run:\n{cell.source}"
        if cell.cell_type == "markdown":
            for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", cell.source):
                assert link.startswith("http") or (path.parent / link).exists(), f"{link} leads nowhere"
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr"
            assert not re.search(
                r"/(root|home|tmp|work)/", json.dumps(output.get("text", "")) + json.dumps(output.get("data", {}).get("text/plain", ""))
            )
    monkeypatch.chdir(path.parent)
    written = filtered(path)
    no_directive_is_left(written)
    assert len(written.encode()) < 1_500_000, "a page of the book, its pickers and all, weighs at most 1.5 MB"


def filtered(path):
    """What the filter makes of a page, run in this process: starting it a hundred times takes minutes."""
    given, written = sys.stdin, io.StringIO()
    Widget.close_all()  # those of the pages before are no part of this one
    with contextlib.redirect_stdout(written):
        sys.stdin = io.StringIO(path.read_text())
        try:
            runpy.run_path(str(ROOT / "book/gradcam-nb-filter"))
        finally:
            sys.stdin = given
    return written.getvalue()


def no_directive_is_left(text):
    from nbconvert import MarkdownExporter

    text, _ = MarkdownExporter().from_notebook_node(nbformat.reads(text, 4))
    assert not re.search(r"^#\s*\|\s*(export|exports|exporti|hide|default_exp|slow|net|cuda)\b", text, flags=re.M)


def test_a_slider_needs_no_kernel(monkeypatch):
    """The state of a page's widgets is in what the book is made from, the link from slider to pictures too."""
    path = ROOT / "nbs/widgets/slices.ipynb"
    monkeypatch.chdir(path.parent)
    page = json.loads(filtered(path))
    states = [widget for kind in page["metadata"]["widgets"].values() for widget in kind["state"].values()]
    kinds = {widget["model_name"]: widget["state"] for widget in states}
    assert kinds["LinkModel"]["source"][1] == "value" and kinds["LinkModel"]["target"][1] == "selected_index"
    assert len(kinds["StackModel"]["children"]) == 24
    shown = [
        output
        for cell in page["cells"]
        for output in cell.get("outputs", [])
        if "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    ]
    assert len(shown) == 1


def test_the_filter_is_a_command():
    path = ROOT / "nbs/targets/classifier.ipynb"
    done = subprocess.run(
        [Path(sys.executable).with_name("gradcam-nb-filter")],
        input=path.read_text(),
        capture_output=True,
        text=True,
        cwd=path.parent,
        check=True,
    )
    no_directive_is_left(done.stdout)


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "index.qmd", ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name)
def test_links_of_pages(path):
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        assert link.startswith("http") or (path.parent / link).exists(), f"{link} leads nowhere"
