"""What the book's filter makes of a page, made outside of the test's process: it runs cells, and what they make stays in memory."""

import contextlib
import io
import multiprocessing
import os
import runpy
import sys
from pathlib import Path

import pytest

FILTER = Path(__file__).resolve().parent.parent / "book/gradcam-nb-filter"
# Imported once, by the server that each page's process is a copy of.
PRELOADED = ["torchvision", "timm", "cv2", "ipywidgets", "matplotlib.pyplot", "nbdev.processors", "execnb.shell"]


def _filter(path, written):
    import torch

    torch.set_num_threads(1)
    os.chdir(path.parent)
    sys.stdin, out = io.StringIO(path.read_text()), io.StringIO()
    with contextlib.redirect_stdout(out):
        runpy.run_path(str(FILTER))
    written.send(out.getvalue())


@pytest.fixture(scope="session")
def filtered():
    """A function of a page's path: what the filter writes, in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)

    def filtered_page(path):
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=_filter, args=(path, writer))
        process.start()
        writer.close()  # so that the end of the process is the end of what can be read
        with reader:
            try:
                return reader.recv()
            except EOFError:
                raise AssertionError(f"{path.name}: the filter failed, see what it has printed") from None
            finally:
                process.join()

    return filtered_page
