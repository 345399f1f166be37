"""Times runs of minutes pass by pass in turns: what else the machine does then falls on all of them alike."""

import threading
import time
from unittest.mock import patch

from torchvision.models import ResNet


class _Turns:
    """Lets one of several threads go on; a pass of the network hands over to the next."""

    def __init__(self, names):
        self.names, self.at, self.done = names, 0, set()
        self.spent, self.since = dict.fromkeys(names, 0.0), 0.0
        self.handing, self.here = threading.Condition(), threading.local()

    def take(self):
        with self.handing:
            self.handing.wait_for(lambda: self.names[self.at] == self.here.name)
        self.since = time.perf_counter()

    def hand_over(self):
        self.spent[self.here.name] += time.perf_counter() - self.since
        with self.handing:
            for _ in self.names:
                self.at = (self.at + 1) % len(self.names)
                if self.names[self.at] not in self.done:
                    break
            self.handing.notify_all()

    def run(self, name, call):
        self.here.name = name
        self.take()
        try:
            call()
        finally:
            self.done.add(name)
            self.hand_over()


def times_in_turns(cases) -> list[float]:
    """Seconds of each case: one run, its passes of the network in turns with those of the others."""
    calls = {case.name: case.prepare() for case in cases}
    turns, plain = _Turns(list(calls)), ResNet.forward

    def forward(model, x):
        turns.hand_over()
        turns.take()
        return plain(model, x)

    threads = [threading.Thread(target=turns.run, args=item) for item in calls.items()]
    with patch.object(ResNet, "forward", forward):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return list(turns.spent.values())
