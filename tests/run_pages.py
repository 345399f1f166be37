"""Runs the book's pages: each in a fresh process, two at a time, the longest first. Fails if one fails, and says where.

    python tests/run_pages.py [--all] [--workers 2] [nbs/methods/gradcam.ipynb ...]

Cells with a flag of settings.ini's `tst_flags` are skipped; `--all` skips only those that need a network or a GPU. A page runs as
`nbdev_test` runs it, in its own folder. Its process is a copy (a fork) of this one, which has imported what the package
requires and has run nothing: that saves the seconds of `import torch`, and no page can see another.
"""

import argparse
import configparser
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "tests/page_seconds.json"  # what a fresh clone goes by: seconds of each page; `--keep` writes it
LAST = ROOT / ".venv/page_seconds.json"  # the last run's
NEVER = {"net", "cuda"}
CHAPTERS = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["book"]["chapters"]
# tests/test_newcomer.py runs these in a newcomer's environment, and looks at their pictures: no need to run them twice.
START = next(entry for entry in CHAPTERS if isinstance(entry, dict) and entry["part"] == "Start")["chapters"]
LIMIT = 600  # seconds of a page, but for `--all`: one that hangs is ended, and named


def seconds():
    """What is known of how long pages take."""
    known = {}
    for file in (KEPT, LAST):
        if file.is_file():
            known |= json.loads(file.read_text(encoding="utf-8"))
    return known


def pages(named, flagged):
    """The pages that are named, or all; those that never ran first, then the longest."""
    found = [Path(page).resolve() for page in named] or [
        page
        for page in (ROOT / "nbs").rglob("*.ipynb")
        if not any(part.startswith((".", "_")) for part in page.relative_to(ROOT).parts) and (flagged or name_of(page) not in START)
    ]
    known = seconds()
    return sorted(found, key=lambda page: (-known.get(name_of(page), float("inf")), page))


def name_of(page):
    return Path(os.path.relpath(page, ROOT)).as_posix()


def preload():
    """Import what pages import, and nothing of the package. No thread may have started: a fork would not have it."""
    import anywidget  # noqa: F401
    import cv2  # noqa: F401
    import ipywidgets  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import matplotlib_inline.backend_inline  # noqa: F401
    import nbdev.test  # noqa: F401
    import pandas  # noqa: F401
    import PIL.Image  # noqa: F401
    import safetensors.torch  # noqa: F401
    import timm  # noqa: F401
    import torch
    import torchvision  # noqa: F401
    import tqdm.auto  # noqa: F401

    torch.set_num_threads(1)
    tasks = Path("/proc/self/task")
    if tasks.is_dir():
        threads = len(list(tasks.iterdir()))
        assert threads == 1, f"importing started {threads - 1} threads, and a forked page would miss them"


def start(page, flags, forced):
    """Fork a process that runs one page, and give its number and what it will have said."""
    said = tempfile.TemporaryFile()
    sys.stdout.flush()
    number = os.fork()
    if number:
        return number, said
    code = 1
    try:
        os.setsid()
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        signal.alarm(0 if forced else LIMIT)
        os.chdir(ROOT / "nbs")
        from nbdev.test import test_nb

        passed, _ = test_nb(page, skip_flags=flags, force_flags=forced, basepath=ROOT)
        code = 0 if passed else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(queue, workers, flags, forced):
    """Run all; gives seconds by page, and what the failed ones said."""
    took, failed, running = {}, {}, {}
    queue = list(queue)
    print("    seconds   peak MB   page")
    try:
        while queue or running:
            while queue and len(running) < workers:
                page = queue.pop(0)
                number, said = start(page, flags, forced)
                running[number] = page, said, time.monotonic()
            number, status, used = os.wait4(-1, 0)
            page, said, began = running.pop(number)
            stop(number)  # what a page has left running ends with it
            name, peak = name_of(page), used.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
            took[name] = round(time.monotonic() - began, 1)
            print(f"{took[name]:11.1f}{peak:10.0f}   {name}{'   FAILED' if status else ''}", flush=True)
            if status:
                said.seek(0)
                code = os.waitstatus_to_exitcode(status)
                why = f"after {LIMIT} seconds" if code == -signal.SIGALRM else f"status {code}"
                failed[name] = f"{why}\n{said.read().decode(errors='replace')}"
            said.close()
    finally:
        for number in running:
            stop(number)
    return took, failed


def stop(number):
    """End what is left of a page's processes."""
    try:
        os.killpg(number, signal.SIGKILL)
    except ProcessLookupError:
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", help="left out: all")
    parser.add_argument("--all", action="store_true", help="flagged cells too, but for those that need a network or a GPU")
    parser.add_argument("--workers", type=int, default=2, help="how many pages at a time")
    parser.add_argument("--keep", action="store_true", help=f"write {KEPT.relative_to(ROOT)}, the order of a fresh clone")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # pages share the machine; and numpy would start a thread that a fork does not have
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    flags = settings["DEFAULT"]["tst_flags"].split()
    forced = [flag for flag in flags if flag not in NEVER] if asked.all else []
    preload()
    began = time.monotonic()
    took, failed = run(pages(asked.pages, asked.all), asked.workers, flags, forced)
    print(f"{len(took)} pages in {time.monotonic() - began:.0f} s; one after the other {sum(took.values()):.0f} s")
    if not asked.all:
        known = {name: value for name, value in (seconds() | took).items() if name.startswith("nbs/") and (ROOT / name).is_file()}
        for file, wanted in ((LAST, LAST.parent.is_dir()), (KEPT, asked.keep)):
            if wanted:
                file.write_text(json.dumps(known, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    for name, said in failed.items():
        print(f"\n{name} failed, {said}")
    if failed:
        sys.exit(f"{len(failed)} of {len(took)} pages failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
