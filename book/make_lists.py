"""Writes what can be known from the rest: `make lists`.

- `__all__` of the package and of the rooms that are lists, from their own import lines;
- the README's tables of methods and metrics, from the classes;
- llms.txt, the book's contents for language models: each page with its summary, in the book's order.
"""

import ast
import json
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gradcam_nb"
ROOMS = ("methods", "metrics", "reshape", "targets")  # their `__init__` is a list that is kept by hand: one import line a file
SITE = "https://gradcam-nb.github.io/gradcam_nb"
HEAD = """# gradcam_nb

> What in a picture made a PyTorch model say what it said, and whether that picture can be trusted: heat maps for classifiers, detectors,
> segmenters, embeddings and vision-language models, CNNs and transformers alike, with metrics.

`from gradcam_nb import explain; explain("photo.jpg", "resnet50").show()`; with tensors, in the names of `pytorch_grad_cam`:
`GradCAM(model, target_layers)(input_tensor, targets)`. Each page below is a notebook from which the code is exported.
"""


def imported(path: Path) -> list[str]:
    """The public names that an `__init__` imports; for `from .room import *`, those that the room imports."""
    names = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        for alias in node.names:
            if alias.name == "*":
                names += imported(path.parent / node.module / "__init__.py")
            else:
                names.append(alias.asname or alias.name)
    return sorted((name for name in names if not name.startswith("_")), key=str.lower)


def with_all(path: Path) -> str:
    """An `__init__` with the `__all__` of its imports."""
    text = path.read_text(encoding="utf-8")
    listed = "__all__ = [\n" + "".join(f'    "{name}",\n' for name in imported(path)) + "]\n"
    written, found = re.subn(r"^__all__ = \[.*?^\]\n", lambda _: listed, text, flags=re.M | re.S)
    if found != 1:
        raise ValueError(f"{path.relative_to(ROOT)}: __all__ stands there {found} times; write `__all__ = [`, a line, `]` once")
    return written


def pages() -> list[str]:
    """The book's pages, in its order."""
    chapters = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["book"]["chapters"]
    return [page for entry in chapters for page in (entry["chapters"] if isinstance(entry, dict) else [entry])]


def in_order(items: dict[str, type]) -> list[tuple[str, type, str]]:
    """Name, class and page of each, as the book has them; those of one page as they stand there."""
    rows = []
    for page in pages():
        module = PACKAGE / Path(page).relative_to("nbs").with_suffix(".py") if page.startswith("nbs/") else None
        if module and module.is_file():
            classes = [node.name for node in ast.parse(module.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
            name_of_module = ".".join(module.relative_to(ROOT).with_suffix("").parts)
            rows += [(name, items[name], page) for name in classes if name in items and items[name].__module__ == name_of_module]
    missing = set(items) - {name for name, _, _ in rows}
    if missing:
        raise ValueError(f"_quarto.yml: no chapter holds {', '.join(sorted(missing))}; add a line for its page")
    return rows


def shown(item: type) -> str:
    """What a class gives: the first line of its docstring, up to where it begins to explain itself."""
    said = re.split(r"[;:] ", item.__doc__.strip().splitlines()[0])[0].rstrip(".")
    first = said.split()[0]
    return said if first[1:].lower() != first[1:] else said[0].lower() + said[1:]


def linked(paper: str) -> str:
    """A paper as a class names it, its number a link."""
    paper = re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)
    paper = re.sub(r"(?:doi )?(10\.\d{4,}/[^\s)]+)", r"[doi \1](https://doi.org/\1)", paper)
    return re.sub(r"(hal-\d+)", r"[\1](https://hal.science/\1)", paper)


def methods_table() -> list[str]:
    """The README's table of methods."""
    from gradcam_nb.catalogue import list_methods

    lines = ["| method | what it shows | cost | paper |", "|---|---|---|---|"]
    for name, item, page in in_order(list_methods()):
        said = f"a yardstick: {shown(item)}" if item.kind == "yardstick" else shown(item)
        lines.append(f"| [{name}]({page}) | {said} | {item.cost} | {linked(item.paper)} |")
    return lines


def metrics_table() -> list[str]:
    """The README's table of metrics."""
    from gradcam_nb.catalogue import list_metrics

    lines = ["| metric | what it tells | paper |", "|---|---|---|"]
    for name, item, page in in_order(list_metrics()):
        arrow = "↑" if item.higher_is_better else "↓"
        lines.append(f"| [{name}]({page}) {arrow} | {shown(item)} | {linked(item.paper)} |")
    return lines


def readme() -> str:
    """The README with its tables made anew, between the two comments that mark each."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, lines in (("methods", methods_table()), ("metrics", metrics_table())):
        begin, end = f"<!-- {name}: written by `make lists` -->\n", f"<!-- end of {name} -->\n"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"README.md: {begin.strip()} and {end.strip()} must stand there once each")
        before, rest = text.split(begin)
        text = before + begin + "\n" + "\n".join(lines) + "\n\n" + end + rest.split(end)[1]
    return text


def described(page: str) -> str:
    """A page's line in llms.txt: its title, its address, its summary."""
    if page.endswith(".qmd"):
        title, summary = re.search(r"^# ([^{\n]+)", (ROOT / page).read_text(encoding="utf-8"), re.M)[1].strip(), ""
    else:
        cells = json.loads((ROOT / page).read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        title = re.search(r"^# (.+)$", text, re.M)[1].strip()
        summary = re.search(r"^> (.+)$", text, re.M)[1].strip()
    address = re.sub(r"[.](ipynb|qmd)$", ".html", page)
    return f"- [{title}]({SITE}/{address})" + (f": {summary}" if summary else "")


def llms() -> str:
    """The whole of llms.txt."""
    lines = [HEAD]
    for entry in yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["book"]["chapters"]:
        if isinstance(entry, dict):
            lines += [f"## {entry['part']}", "", *map(described, entry["chapters"]), ""]
        elif entry not in ("index.qmd", "references.qmd"):
            lines += [described(entry), ""]
    return "\n".join(lines).rstrip() + "\n"


def main():
    """Write all, the `__all__` first: the tables are read from the package."""
    for path in [*(PACKAGE / room / "__init__.py" for room in ROOMS), PACKAGE / "__init__.py"]:
        path.write_text(with_all(path), encoding="utf-8")
    sys.path.insert(0, str(ROOT))
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
    (ROOT / "llms.txt").write_text(llms(), encoding="utf-8")


if __name__ == "__main__":
    main()
