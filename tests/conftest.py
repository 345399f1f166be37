"""What tests share: the folder of real weights and photos; the browser; memory that is given back."""

import contextlib
import ctypes
import functools
import gc
import os
import sys
from pathlib import Path

import pytest
import torch
from browser import chromium, new_page, offline_page  # noqa: F401  fixtures
from filtered import filtered  # noqa: F401  a fixture

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("GRADCAM_NB_DATA", ROOT.parent / "shared" / "data"))
# Long, and each in one piece: what begins with them does not end with one worker waiting for the other. The two zoos hold most
# memory, so they do not come at the same time.
FIRST = ["test_browser_lab.py", "test_browser_book.py", "test_newcomer.py", "test_next_person.py", "test_zoo_timm.py"]


def pytest_configure():
    """A worker has a core of its own, and so have the programs that it starts: two that wait for each other's threads lose most of it."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.fixture(scope="module", autouse=True)
def memory_is_given_back(request):
    """A worker runs many files and never ends: what a file has cached goes with it, and the allocator keeps nothing for the next."""
    yield
    for cached in vars(request.module).values():
        if isinstance(cached, functools._lru_cache_wrapper):
            cached.cache_clear()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def data():
    """The folder of real weights and photos; the test skips, saying so, where it is missing."""
    if not (DATA / "models").is_dir():
        pytest.skip(f"real weights and photos are not at {DATA} (set GRADCAM_NB_DATA)")
    sys.path.append(str(DATA))
    return DATA
