"""Times cases in turns in one process; measures peak memory, each case in a process of its own."""

import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.turns import times_in_turns


@dataclass(frozen=True)
class Case:
    """One thing to measure. `prepare()` returns the call that is timed; it runs once, before the clock starts."""

    group: str  # cases of a group are timed in turns and compared with its first one
    name: str
    prepare: Callable[[], Callable[[], object]]
    bound: float | None = None  # the multiple of the group's first case that must not be exceeded
    memory: bool = False  # measure peak memory instead of time
    rounds: int = 15  # fewer where a run takes seconds
    in_turns: bool = False  # one run, pass by pass in turns with the others of the group: where a run takes minutes


def _wait():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def times(cases: list[Case], rounds: int = 15) -> list[float]:
    """Seconds of each case: the median of `rounds` interleaved runs after one or two rounds of warm-up."""
    calls = [case.prepare() for case in cases]
    taken = [[] for _ in cases]
    warm_up = min(2, rounds // 3)
    for i in range(rounds + warm_up):
        for call, list_of_times in zip(calls, taken):
            _wait()
            start = time.perf_counter()
            call()
            _wait()
            if i >= warm_up:
                list_of_times.append(time.perf_counter() - start)
    return [statistics.median(t) for t in taken]


def _high_water() -> int:
    """Kilobytes. Linux starts a process's `ru_maxrss` at what its parent held, which may be more than it will ever hold itself."""
    status = Path("/proc/self/status")
    if status.is_file():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _peak(case: Case, pipe) -> None:
    call = case.prepare()
    before = _high_water()
    call()
    pipe.send(_high_water() - before)


# glibc keeps freed blocks for later, more of them the longer a program runs: a loop over one and the same batch grows
# by up to 40 %, another time by nothing. With a fixed threshold freed memory goes back, and what is measured is what is held.
GIVE_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def peak_memory(case: Case) -> int:
    """Kilobytes by which one run raises the high-water mark of a fresh process."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_peak, args=(case, send))
    with patch.dict(os.environ, GIVE_BACK):
        process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{case.name}: the measuring process failed")
    return receive.recv()


def median_memory(case: Case) -> float:
    """Of at most three processes."""
    return statistics.median(peak_memory(case) for _ in range(min(3, case.rounds)))


def measure(cases: list[Case]) -> list[dict]:
    """A row for each case: its multiple of the first case of its group."""
    rows = []
    for group in dict.fromkeys(case.group for case in cases):
        members = [case for case in cases if case.group == group]
        first = members[0]
        if first.memory:
            values = [median_memory(case) for case in members]
        elif first.in_turns:
            values = times_in_turns(members)
        else:
            values = times(members, first.rounds)
        for case, value in zip(members, values):
            multiple = round(value / values[0], 3)
            rows.append(dict(group=group, case=case.name, multiple=multiple, bound=case.bound))
    return rows
