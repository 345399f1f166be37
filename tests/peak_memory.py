"""Runs a command, and prints the most memory that it and all that it started held at once. Fails where the command fails, or above a limit.

    python tests/peak_memory.py [--limit 6] make step notebooks pytest

Counted twice a second: the proportional set size, in which a page of memory that several processes share counts once, parted among
them. Where the system does not tell it (not Linux, or another user's process) the resident set size, in which it counts every time.
"""

import argparse
import subprocess
import sys
import threading
from pathlib import Path

import psutil

GB = 1024**3
EVERY = 0.5  # seconds


def proportional(process):
    """A process's proportional set size in bytes; its resident size where that is not told."""
    try:
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resident(process)


def resident(process):
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def held(root, more_than=0):
    """What a process and its children hold, in bytes. Asking takes a while, so less is counted where it cannot be `more_than`."""
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0
    upper = sum(map(resident, processes))
    return sum(map(proportional, processes)) if upper > more_than else 0


def peak(command):
    """Run it; its exit status, and the most that was held at once."""
    process = subprocess.Popen(command)
    root, ended, most = psutil.Process(process.pid), threading.Event(), 0

    def watch():
        nonlocal most
        while not ended.wait(EVERY):
            most = max(most, held(root, more_than=most))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        return process.wait(), most
    except KeyboardInterrupt:
        return process.wait(), most
    finally:
        ended.set()
        watching.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, help="in GB: fail above it")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    status, most = peak(asked.command)
    print(f"peak memory: {most / GB:.2f} GB (proportional set size, sampled every {EVERY} s)", flush=True)
    if status:
        sys.exit(status if status > 0 else 1)
    if asked.limit and most > asked.limit * GB:
        sys.exit(f"peak memory: {most / GB:.2f} GB is above {asked.limit:g} GB")


if __name__ == "__main__":
    main()
