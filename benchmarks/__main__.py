"""python -m benchmarks [WORD ...]: measure the groups whose name has one of the words (all without), and store the ratios."""

import json
import platform
import sys
from pathlib import Path

import torch
import torchvision

from benchmarks.cases import CASES
from benchmarks.harness import measure
from benchmarks.network import DEVICE


def above(row):
    return row["bound"] is not None and row["multiple"] > row["bound"]


def verdict(row):
    if row["bound"] is None:
        return ""
    return f"ABOVE {row['bound']}" if above(row) else "ok"


def main():
    words = sys.argv[1:]
    rows = measure([case for case in CASES if not words or any(word in case.group for word in words)])
    for row in rows:
        print(f"{row['group']:24} {row['case']:28} {row['multiple']:8.2f} ×  {verdict(row)}")
    file = Path(__file__).with_name("results.json")
    stored = json.loads(file.read_text()) if file.exists() else {"rows": []}
    measured = {(row["group"], row["case"]) for row in rows}
    kept = [row for row in stored["rows"] if (row["group"], row["case"]) not in measured]
    machine = dict(
        device=DEVICE,
        threads=torch.get_num_threads(),
        machine=platform.machine(),
        torch=torch.__version__,
        torchvision=torchvision.__version__,
    )
    file.write_text(json.dumps(dict(machine=machine, rows=kept + rows), indent=1) + "\n")
    return any(above(row) for row in rows)


if __name__ == "__main__":
    sys.exit(main())
