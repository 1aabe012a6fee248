"""Crew: the threads of one rank's step thread. The one place that decides how many compute.

Every part of a step (attention, experts, sampling) says how much work it is. Work that is small, whatever else the
machine does, is done by the step thread alone: at a barrier it could only lose. Larger work has a `Ladder` for each
of its sizes. Knows no model and no exchange.
"""

import time
from types import TracebackType

import torch

from experts import env
from experts.ladder import Ladder, rungs
from experts.machine import cores

GRAIN = 1 << 18  # multiply-adds that a thread must have for itself, about 25 us: waking it costs as much


def most_threads() -> int:
    """Threads that a process on this machine may use: one for each core it can keep busy, less where the user says so."""
    limit = env.thread_limit()
    return cores() if limit is None else min(cores(), limit)


class Crew:
    """Used by one thread. Parts nest: while an inner one runs, the outer one's time stands still."""

    def __init__(self, most: int) -> None:
        """most: threads of this rank at any time."""
        self.most = most
        self._always = env.threads_always()
        self._ladders: dict[tuple[str, int], Ladder] = {}
        self.running: Part | None = None

    def part(self, name: str, work: int) -> "Part":
        """To be entered around a part of a step. work: multiply-adds of its largest product, 0 for none."""
        key = name, work.bit_length()
        ladder = self._ladders.get(key)
        if ladder is None:
            ladder = self._ladders[key] = self._new(1 << work.bit_length() >> 1)
        return Part(self, ladder, work)

    def _new(self, work: int) -> Ladder:
        """work: the least of its size, so that the first piece does not decide for all."""
        if self._always:
            return Ladder((self.most,))
        return Ladder(rungs(max(1, min(self.most, work // GRAIN))))

    def aside(self) -> "Part":
        """To be entered around what is not this rank's work, such as waiting for another's."""
        return Part(self, None, 0)


class Part:
    """A part of a step, as a context: sets torch's threads on entering, and those of before on leaving."""

    __slots__ = ("_before", "_began", "_crew", "_ladder", "_outer", "_seconds", "_work")

    def __init__(self, crew: Crew, ladder: Ladder | None, work: int) -> None:
        self._crew, self._ladder, self._work = crew, ladder, work
        self._outer: Part | None = None
        self._seconds = 0.0
        self._began = 0.0
        self._before = 1

    def __enter__(self) -> None:
        self._outer, self._crew.running = self._crew.running, self
        now = time.perf_counter()
        if self._outer is not None:
            self._outer._seconds += now - self._outer._began
        if self._ladder is not None:
            self._before = torch.get_num_threads()
            torch.set_num_threads(self._ladder.threads)
        self._began = now

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now = time.perf_counter()
        if self._ladder is not None:
            torch.set_num_threads(self._before)
            if error is None:
                self._ladder.note(self._seconds + now - self._began, self._work)
        self._crew.running = self._outer
        if self._outer is not None:
            self._outer._began = now
