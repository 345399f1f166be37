"""What tests share: the folder of real weights and photos; the browser."""

import os
import sys
from pathlib import Path

import pytest
import torch
from browser import chromium, new_page, offline_page  # noqa: F401  fixtures

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("GRADCAM_NB_DATA", ROOT.parent / "shared" / "data"))


def pytest_configure():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data():
    """The folder of real weights and photos; the test skips, saying so, where it is missing."""
    if not (DATA / "models").is_dir():
        pytest.skip(f"real weights and photos are not at {DATA} (set GRADCAM_NB_DATA)")
    sys.path.append(str(DATA))
    return DATA
