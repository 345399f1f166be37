"""A method, a target, a metric and a reshape transform are added to a copy of the repository, from CONTRIBUTING's sections alone.

What a section says is done as it stands there: its cells become the page, its two lines go where it says, then its commands.
The copy must pass the checks, know what was added, and be as it was once page and lines are gone.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("method", "target", "metric", "reshape transform")
NAMES = ("MedianCAM", "AllOf", "CentreDistance", "columns_reshape_transform")
LINES = re.compile(
    r"""The\ page\ `(?P<page>[^`]+)`.*?
        In\ `(?P<room>[^`]+)`\ the\ line\ `(?P<imported>[^`]+)`.*?
        In\ `_quarto\.yml`,\ part\ `(?P<part>[^`]+)`,\ the\ line\ `(?P<chapter>[^`]+)`.*?
        ^```\n(?P<cells>.*?)^```$""",
    re.M | re.S | re.X,
)


def section(kind):
    """What CONTRIBUTING says of a new one."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = LINES.search(re.search(rf"^## A new {kind}\n(.*?)^```$.*?^```$", text, flags=re.M | re.S)[0])
    assert found, f"CONTRIBUTING, a new {kind}: no page, no two lines, or no cells"
    return found.groupdict()


def page_of(cells):
    """The cells of a section as a notebook."""
    made = new_notebook(metadata={"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}})
    for kind, source in re.findall(r"^%% (code|markdown)\n(.*?)(?=^%% |\Z)", cells, flags=re.M | re.S):
        made.cells.append({"code": new_code_cell, "markdown": new_markdown_cell}[kind](source.strip("\n")))
    return made


def insert(path, line, after):
    """Put a line behind the last one that `after` matches, with its indentation."""
    text = path.read_text(encoding="utf-8")
    last = list(re.finditer(after, text, flags=re.M))[-1]
    indent = re.match(r" *", last[0])[0]
    path.write_text(f"{text[: last.end()]}\n{indent}{line}{text[last.end() :]}", encoding="utf-8")


class Copy:
    """The repository in another folder, in which the commands of a developer run."""

    def __init__(self, folder):
        self.root = folder
        files = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split("\0")
        for name in filter(None, files):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        commands = Path(sys.executable).parent
        self.environment = os.environ | {"PYTHONPATH": str(folder), "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
        for inherited in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST"):
            self.environment.pop(inherited, None)
        self.run("git", "init", "-q")

    def run(self, *command, check=True):
        done = subprocess.run(command, cwd=self.root, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if check:
            assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
        return done.stdout

    def python(self, *arguments):
        return self.run(sys.executable, *arguments)

    def commit(self):
        self.run("git", "add", "--all")
        self.run("git", "-c", "user.name=next", "-c", "user.email=next@example.org", "commit", "-qm", "as it is", "--no-verify")

    def differs(self):
        return self.run("git", "status", "--porcelain").splitlines()

    def add(self, kind):
        """Steps 1 to 3 of a section."""
        said = section(kind)
        nbformat.write(page_of(said["cells"]), self.root / said["page"])
        insert(self.root / said["room"], said["imported"], r"^from \..*$")
        insert(
            self.root / "_quarto.yml", said["chapter"], rf'^    - part: "?{re.escape(said["part"])}"?\n      chapters:(\n        - .*)+$'
        )

    def remove(self, kind):
        said = section(kind)
        (self.root / said["page"]).unlink()
        (self.root / "gradcam_nb" / Path(said["page"]).relative_to("nbs").with_suffix(".py")).unlink()
        for name, line in ((said["room"], said["imported"]), ("_quarto.yml", said["chapter"])):
            lines = (self.root / name).read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [one for one in lines if one.strip() != line]
            assert len(kept) == len(lines) - 1
            (self.root / name).write_text("".join(kept), encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The copy with one of each, by the sections."""
    made = Copy(tmp_path_factory.mktemp("next") / "repository")
    made.commit()  # it is in step, as `make step` has it
    for kind in KINDS:
        made.add(kind)
    made.run("ruff", "format", "-q", "nbs")
    made.run("nbdev_export")
    made.python("book/make_lists.py")
    made.python("book/store_outputs.py", section("method")["page"])  # no check asks for the others' outputs; they run below
    return made


def test_the_sections_name_one_of_each():
    assert [section(kind)["imported"].split(" import ")[1] for kind in KINDS] == list(NAMES)


def test_only_what_is_named_or_generated_changed(copy):
    rooms = {section(kind)["room"] for kind in KINDS}
    pages = {section(kind)["page"] for kind in KINDS}
    modules = {f"gradcam_nb/{Path(page).relative_to('nbs').with_suffix('.py')}" for page in pages}
    generated = {"gradcam_nb/__init__.py", "gradcam_nb/_modidx.py", "README.md", "llms.txt"}
    assert {line[3:] for line in copy.differs()} == {"_quarto.yml"} | rooms | pages | modules | generated


def test_it_is_in_step(copy):
    assert "in step" in copy.python("tests/in_step.py")


def test_ruff_finds_nothing(copy):
    changed = [line[3:] for line in copy.differs() if line.endswith((".py", ".ipynb"))]
    copy.run("ruff", "check", "--force-exclude", *changed)
    copy.run("ruff", "format", "--check", "--force-exclude", *changed)


def test_the_pages_run(copy):
    said = copy.python("tests/run_pages.py", *(section(kind)["page"] for kind in KINDS))
    assert "4 pages in" in said


def test_the_checks_of_the_house_and_the_book(copy):
    """All that is asked of the new pages and modules, and of the files that list them."""
    stems = [Path(section(kind)["page"]).stem for kind in KINDS]
    once = ["all_names", "chapter_once", "module_has_its_notebook", "its_methods", "its_metrics", "citations", "neighbours", "llms_txt"]
    files = ["tests/test_house.py", "tests/test_book.py", "tests/test_readme.py", "tests/test_browser_book.py"]
    said = copy.python("-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", " or ".join([*stems, *once]))
    # A module: floors, private names, length. A page: links twice, headings, how it begins, outputs, filter. A method: its picker.
    assert f"{4 * 3 + 4 * 6 + 1 + len(once)} passed" in said


def test_the_method_is_swept(copy):
    said = copy.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_sweep.py", "-k", "MedianCAM and not GradCAM")
    assert re.search(r"\d\d passed", said) and "failed" not in said


def test_it_is_known_everywhere(copy):
    copy.python(
        "-c",
        f"""
from gradcam_nb import {", ".join(NAMES)}, list_methods, list_metrics
from gradcam_nb.widgets.lists import method_choices
assert list_methods()["MedianCAM"] is MedianCAM
assert list_metrics()["CentreDistance"] is CentreDistance
assert "MedianCAM" in [choice["value"] for choice in method_choices()]
""",
    )
    readme, llms = ((copy.root / name).read_text(encoding="utf-8") for name in ("README.md", "llms.txt"))
    assert "| [MedianCAM](nbs/methods/median_cam.ipynb) | channels weighed by the median of their gradient |" in readme
    assert "| [CentreDistance](nbs/metrics/centre_distance.ipynb) ↓ | the distance of the map's centre of mass" in readme
    for kind in KINDS:
        assert Path(section(kind)["page"]).with_suffix(".html").as_posix() in llms


def test_a_list_that_was_not_made_anew_is_found(copy):
    before = (copy.root / "README.md").read_text(encoding="utf-8")
    (copy.root / "README.md").write_text(before.replace("the median of their gradient", "something else"), encoding="utf-8")
    said = copy.run(sys.executable, "tests/in_step.py", check=False)
    assert "out of step" in said and "README.md" in said
    assert (copy.root / "README.md").read_text(encoding="utf-8") == before


def test_removing_page_and_lines_undoes_it(copy):
    """The last test of this file: it takes away what the others look at."""
    for kind in KINDS:
        copy.remove(kind)
    copy.run("nbdev_export")
    copy.python("book/make_lists.py")
    assert copy.differs() == []
