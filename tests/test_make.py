"""What `make test` stands on: pages that fail are named, pages cannot see each other, memory is counted and bounded."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """One raises, one kills its own process, two are fine but for flagged cells."""
    folder = tmp_path_factory.mktemp("pages")
    leaves_a_trace = "import os\nimport sys", "os.environ['SEEN'] = '1'\nsys.seen = True"
    alone = (
        "import os\nimport sys",
        f"assert os.getcwd() == {str(folder)!r}",
        "assert 'SEEN' not in os.environ and not hasattr(sys, 'seen') and 'gradcam_nb' not in sys.modules",
    )
    cells = {
        "a_fails": (*leaves_a_trace, "def half(x):\n    return x / 0\n\n\nhalf(3)"),
        "b_dies": (*leaves_a_trace, "os.kill(os.getpid(), 9)"),
        "c_passes": (*alone, "#| net\nraise ValueError('net')", "#| cuda\nraise ValueError('cuda')"),
        "d_is_slow": (*alone, "#| slow\nraise ValueError('slow')"),
    }
    for name, sources in cells.items():
        nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), folder / f"{name}.ipynb")
    return folder


def test_pages_that_fail_are_named_with_their_traceback(pages):
    done = run("tests/run_pages.py", "--workers", 1, *sorted(pages.glob("*.ipynb")))
    assert done.returncode == 1
    assert "2 of 4 pages failed" in done.stderr
    assert "a_fails" in done.stderr
    assert "b_dies" in done.stderr
    assert "c_passes" not in done.stderr
    assert "d_is_slow" not in done.stderr
    assert "ZeroDivisionError" in done.stdout
    assert "return x / 0" in done.stdout
    assert "status -9" in done.stdout


def test_all_runs_what_is_slow_but_needs_no_network_and_no_gpu(pages):
    done = run("tests/run_pages.py", "--all", pages / "c_passes.ipynb", pages / "d_is_slow.ipynb")
    assert done.returncode == 1
    assert "1 of 2 pages failed" in done.stderr
    assert "ValueError: slow" in done.stdout


def test_memory_is_that_of_all_processes_and_bounded():
    hold = "import time; held = bytearray(150 * 1024**2); time.sleep(3)"
    two = f"import subprocess, sys; ps = [subprocess.Popen([sys.executable, '-c', {hold!r}]) for _ in '12']; [p.wait() for p in ps]"
    done = run("tests/peak_memory.py", "--limit", 0.2, sys.executable, "-c", two)
    assert done.returncode == 1
    assert "is above 0.2 GB" in done.stderr
    peak = float(done.stdout.split("peak memory: ")[1].split()[0])
    assert 0.3 <= peak < 0.5
    assert run("tests/peak_memory.py", "--limit", 2, sys.executable, "-c", two).returncode == 0


def test_a_command_that_fails_fails():
    assert run("tests/peak_memory.py", sys.executable, "-c", "raise SystemExit(3)").returncode == 3
