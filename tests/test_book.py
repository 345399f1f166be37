"""What Quarto would find wrong in the book, found without it."""

import json
import re
import runpy
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
PAGES = [*NOTEBOOKS, ROOT / "index.qmd", ROOT / "references.qmd"]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
PAPER = re.compile(r"\]\(https?://(?:arxiv\.org/abs/|doi\.org/)([^)\s]*)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.S)


def prose(path):
    """The markdown of a page, without its code."""
    if path.suffix == ".qmd":
        return CODE.sub("", path.read_text(encoding="utf-8"))
    return CODE.sub("", "\n\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"))


def headings(path):
    return [(len(marks), title.strip()) for marks, title in re.findall(r"^(#{1,6}) (.+)$", prose(path), re.M)]


def sections(path):
    """The names by which a page's sections are linked."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for _, title in headings(path)}


def bibliography():
    """key -> the paper's arXiv number or DOI."""
    found = {}
    for key, body in re.findall(r"^@\w+\{([^,]+),\n(.*?)^\}", (ROOT / "references.bib").read_text(encoding="utf-8"), re.M | re.S):
        assert key not in found, f"{key} stands there twice"
        assert {"author", "title", "year"} <= set(re.findall(r"^  (\w+) =", body, re.M)), key
        assert body.count("{") == body.count("}"), key
        found[key] = re.search(r"(?:doi|eprint) = \{([^}]+)\}", body)[1]
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_headings(path):
    """One title, in front; no level is left out; no two sections of a page have one name."""
    found = headings(path)
    levels = [level for level, _ in found]
    assert levels[:1] == [1]
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in zip(levels, levels[1:]))
    assert len({title for _, title in found}) == len(found)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_a_page_begins_with_what_it_is(path):
    first = next(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    assert re.match(r"^# .+\n\n> \S.{10,}", first), "a title, and a summary in one quoted line"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_pictures(path):
    """Pages that are linked are chapters, their sections exist; pictures exist and say what is on them; fences are closed."""
    text = prose(path)
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        page, _, section = target.partition("#")
        file = (path.parent / page).resolve() if page else path
        assert file.exists(), f"{target} leads nowhere"
        if section:
            assert section in sections(file), f"{target}: no such section"
    for alt, target in IMAGE.findall(text):
        assert alt.strip(), f"{target}: say what is on it"
        assert (path.parent / target).exists(), f"{target} leads nowhere"
    assert len(re.findall(r"^:::", text, re.M)) % 2 == 0
    assert not re.search(r"(?<![\w/])@(fig|tbl|sec|eq)-", text), "no page has labels to refer to"


def test_citations():
    """Every citation is in the bibliography, every entry is cited, and a page that links a paper cites it."""
    known, cited = bibliography(), set()
    for path in PAGES:
        text = prose(path)
        here = set(re.findall(r"\[@([\w:]+)\]", text))
        assert here <= set(known), f"{path.name}: {here - set(known)} not in references.bib"
        papers = {known[key] for key in here}
        linked = set(PAPER.findall(text))
        assert linked <= papers, f"{path.name} links {linked - papers} and does not cite it"
        cited |= here
    assert cited == set(known), f"never cited: {set(known) - cited}"


def test_every_method_and_metric_names_its_neighbours():
    """From each page of a method, target, transform, smoothing or metric a reader comes to another."""
    for room in ("methods", "metrics", "targets", "reshape", "smoothing"):
        for path in sorted((ROOT / "nbs" / room).glob("*.ipynb")):
            assert any(target.split("#")[0].endswith(".ipynb") for target in LINK.findall(prose(path))), path


def test_nothing_is_linked_from_nowhere():
    """Every chapter can be reached from the book's first page by links alone, or stands in its contents with a part's name."""
    chapters = yaml.safe_load((ROOT / "_quarto.yml").read_text())["book"]["chapters"]
    assert (chapters[0], chapters[-1]) == ("index.qmd", "references.qmd")
    for entry in chapters:
        assert isinstance(entry, str) or (entry["part"] and entry["chapters"]), entry


def test_llms_txt_says_what_the_book_holds():
    lists = runpy.run_path(str(ROOT / "book/make_lists.py"))
    assert lists["llms"]() == (ROOT / "llms.txt").read_text(encoding="utf-8"), "run make lists"


def test_the_book_has_search_dark_mode_and_a_bibliography():
    settings = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    assert settings["book"]["search"]
    assert set(settings["format"]["html"]["theme"]) == {"light", "dark"}
    assert (ROOT / settings["bibliography"]).exists()
    assert "llms.txt" in settings["project"]["resources"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_pictures_say_something_without_a_screen(path):
    """No output is a bare object's address; none is an error."""
    for cell in nbformat.read(path, 4).cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            said = json.dumps(output.get("text", "")) + json.dumps(output.get("data", {}).get("text/plain", ""))
            assert not re.search(r" at 0x[0-9a-f]{6,}", said)
