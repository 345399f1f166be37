"""The house keeps its floors: who imports whom, what importing loads, what the book holds."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gradcam_nb"
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)

# From the ground up: a module imports only from its own floor's room or from rooms on floors below.
FLOORS = [
    ["smoothing", "targets", "reshape", "imaging"],
    ["engine", "samples", "classes"],
    ["core", "models"],
    ["methods", "metrics", "explanation", "ask"],
    ["catalogue"],
    ["explain", "compare", "listing"],
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
                path_of = PACKAGE / inner.replace(".", "/")
                is_module = path_of.is_dir() or path_of.with_name(f"{path_of.name}.py").is_file()
                yield (inner, "") if is_module else (source, alias.name)


def test_contributing_names_the_rooms_that_there_are():
    """Its table has the floors of this file and every folder and module of the package; a folder's name ends in a slash."""
    rows = re.findall(r"^\| (\d) \| `([^`]+)` \| (\S.*) \|$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.M)
    table = {}
    for level, room, _ in rows:
        table.setdefault(int(level), []).append(room)
    floors = [[room.rstrip("/") for room in table[level]] for level in sorted(table)]
    assert list(map(sorted, floors)) == list(map(sorted, FLOORS))
    named = [room for rooms in table.values() for room in rooms]
    folders = [f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")]
    files = [path.stem for path in PACKAGE.glob("*.py") if not path.name.startswith("_")]
    assert sorted(named) == sorted(folders + files)


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
    assert taken == []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = set()
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
    heavy = ["matplotlib", "ipywidgets", "cv2", "ray", "timm", "nbdev", "fastcore"]
    code = f"import sys, gradcam_nb; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_all_names_are_there():
    import gradcam_nb

    assert len(set(gradcam_nb.__all__)) == len(gradcam_nb.__all__)
    assert [name for name in gradcam_nb.__all__ if not hasattr(gradcam_nb, name)] == []


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
    assert [name for name in listed if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_notebook(path):
    """Links resolve, outputs are small and name no machine."""
    notebook = nbformat.read(path, 4)
    assert path.stat().st_size < 1_500_000
    for cell in notebook.cells:
        if cell.cell_type == "code":
            imports_stand_alone(cell.source)
        else:
            for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", cell.source):
                assert link.startswith("http") or (path.parent / link).exists(), f"{link} leads nowhere"
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr"
            assert not re.search(r"/(root|home|tmp|work)/", said_by(output))


def filtered_pages():
    """All pages; of the methods', whose pickers run methods on photos for seconds, the two heaviest, and the others weekly."""
    for path in NOTEBOOKS:
        seldom = path.parent.name == "methods" and path.stem not in ("gradcam", "gradcam_elementwise")
        yield pytest.param(path, marks=pytest.mark.slow if seldom else (), id=str(path.relative_to(ROOT / "nbs")))


@pytest.mark.parametrize("path", filtered_pages())
def test_the_filter_leaves_no_directive(path, filtered):
    written = filtered(path)
    no_directive_is_left(written)
    assert len(written.encode()) < 1_500_000, "a page of the book, its pickers and all, weighs at most 1.5 MB"


def imports_stand_alone(source):
    """The book's filter runs a cell with imports, and all that is in it."""
    if re.search(r"^(import|from) ", source, flags=re.M):
        others = [node for node in ast.parse(source).body if not isinstance(node, (ast.Import, ast.ImportFrom))]
        assert others == [], f"imports and other code share a cell:\n{source}"


def said_by(output):
    """The text of an output."""
    return json.dumps(output.get("text", "")) + json.dumps(output.get("data", {}).get("text/plain", ""))


def no_directive_is_left(text):
    from nbconvert import MarkdownExporter

    text, _ = MarkdownExporter().from_notebook_node(nbformat.reads(text, 4))
    assert not re.search(r"^#\s*\|\s*(export|exports|exporti|hide|default_exp|slow|net|cuda)\b", text, flags=re.M)


def test_a_slider_needs_no_kernel(filtered):
    """The state of a page's widgets is in what the book is made from, the link from slider to pictures too."""
    page = json.loads(filtered(ROOT / "nbs/widgets/slices.ipynb"))
    states = page["metadata"]["widgets"].values()
    kinds = {widget["model_name"]: widget["state"] for kind in states for widget in kind["state"].values()}
    assert kinds["LinkModel"]["source"][1] == "value"
    assert kinds["LinkModel"]["target"][1] == "selected_index"
    assert len(kinds["StackModel"]["children"]) == 24
    outputs = [output for cell in page["cells"] for output in cell.get("outputs", [])]
    assert ["application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs].count(True) == 1


def test_the_filter_is_a_command():
    path = ROOT / "nbs/targets/classifier.ipynb"
    command = Path(sys.executable).with_name("gradcam-nb-filter")
    done = subprocess.run([command], input=path.read_text(), capture_output=True, text=True, cwd=path.parent, check=True)
    no_directive_is_left(done.stdout)


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "index.qmd", ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name)
def test_links_of_pages(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert link.startswith("http") or (path.parent / link).exists(), f"{link} leads nowhere"
