"""What the book's filter makes of a page, made outside of the test's process: it runs cells, and what they make stays in memory."""

import contextlib
import io
import multiprocessing
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
from ipywidgets import Widget

FILTER = Path(__file__).resolve().parent.parent / "book/gradcam-nb-filter"


def _filtered(path):
    os.chdir(path.parent)
    sys.stdin, written = io.StringIO(path.read_text()), io.StringIO()
    Widget.close_all()  # those of the pages before are no part of this one
    with contextlib.redirect_stdout(written):
        runpy.run_path(str(FILTER))
    return written.getvalue()


@pytest.fixture(scope="module")
def filtered():
    """A function of a page's path. One process filters many pages, for starting it takes seconds; then another one takes its place."""
    with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (1,), maxtasksperchild=80) as process:
        yield lambda path: process.apply(_filtered, (path,))
