"""Writes llms.txt, the book's contents for language models: each page with its summary, in the book's order."""

import re
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent
SITE = "https://gradcam-nb.github.io/gradcam_nb"
HEAD = """# gradcam_nb

> What in a picture made a PyTorch model say what it said, and whether that picture can be trusted: heat maps for classifiers, detectors,
> segmenters, embeddings and vision-language models, CNNs and transformers alike, with metrics.

`from gradcam_nb import explain; explain("photo.jpg", "resnet50").show()`; with tensors: `GradCAM(model, target_layers)(input_tensor, targets)`,
in the names of `pytorch_grad_cam`. Each page below is a notebook from which the code is exported.
"""


def described(page: str) -> str:
    """A page's line: its title, its address, its summary."""
    if page.endswith(".qmd"):
        title, summary = re.search(r"^# ([^{\n]+)", (ROOT / page).read_text(), re.M)[1].strip(), ""
    else:
        text = "\n".join(cell.source for cell in nbformat.read(ROOT / page, 4).cells if cell.cell_type == "markdown")
        title = re.search(r"^# (.+)$", text, re.M)[1].strip()
        summary = re.search(r"^> (.+)$", text, re.M)[1].strip()
    return f"- [{title}]({SITE}/{re.sub(r'[.](ipynb|qmd)$', '.html', page)})" + (f": {summary}" if summary else "")


def text() -> str:
    """The whole file."""
    lines = [HEAD]
    for entry in yaml.safe_load((ROOT / "_quarto.yml").read_text())["book"]["chapters"]:
        if isinstance(entry, dict):
            lines += [f"## {entry['part']}", "", *map(described, entry["chapters"]), ""]
        elif entry not in ("index.qmd", "references.qmd"):
            lines += [described(entry), ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    (ROOT / "llms.txt").write_text(text())
