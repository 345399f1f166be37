"""Runs pages in a fresh kernel each, in their folders, and stores their outputs: `make outputs PAGES="nbs/methods/cam.ipynb"`.

    python book/store_outputs.py [--all] page ...

Cells flagged slow, net or cuda keep the outputs that they have; `--all` runs them too. What a widget
shows needs a kernel, and is not stored; nor is what is said beside the results, such as how long a run will take.
"""

import argparse
import configparser
import re
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def store(page: Path, flags: list[str]):
    """Run one page and write it."""
    notebook = nbformat.read(page, 4)
    flagged = re.compile(rf"^#\|\s*({'|'.join(flags)}|eval:\s*false)\b", re.M) if flags else re.compile(r"^#\|\s*eval:\s*false\b", re.M)
    skipped = {}
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and flagged.search(cell.source):
            skipped[number] = cell.source, cell.outputs
            cell.source = ""
    resources = {"metadata": {"path": str(page.parent)}}
    NotebookClient(notebook, timeout=None, kernel_name="python3", coalesce_streams=True, resources=resources).execute()
    for number, (source, outputs) in skipped.items():
        notebook.cells[number].update(source=source, outputs=outputs)
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        outputs[:] = [output for output in outputs if output.get("name") != "stderr"]
        for output in outputs:
            output.get("data", {}).pop(WIDGET, None)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.pop("language_info", None)
    nbformat.write(notebook, page)
    subprocess.run([Path(sys.executable).with_name("nbdev_clean"), "--fname", page], cwd=ROOT, check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="+")
    parser.add_argument("--all", action="store_true", help="flagged cells too")
    asked = parser.parse_args()
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    for page in asked.pages:
        store(Path(page).resolve(), [] if asked.all else settings["DEFAULT"]["tst_flags"].split())
        print(page)


if __name__ == "__main__":
    main()
