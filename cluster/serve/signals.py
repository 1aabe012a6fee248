"""SIGINT, SIGTERM and SIGHUP of a server: one rule for one process and for a cluster. Knows neither.

While modules load, a signal ends the process. Later the first one asks to end, and one more than SAME_SIGNAL after it
ends the process at once. SIGHUP counts where it was not ignored at the start (as under nohup). SIGUSR1 has a dump printed.

The signals are blocked in every thread, and one thread waits for them: Python's handlers run in the main thread only,
which may be inside native code for minutes, and libraries replace handlers.
"""

import contextlib
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

SAME_SIGNAL = 1.0  # s; a shell and a wrapper may both pass one Ctrl-C on


class Stopped(Exception):
    """A signal asked to end."""


class Signals:
    """asked: set once a signal asked to end
    same: seconds after the first in which another is taken for it
    """

    def __init__(self, same: float = SAME_SIGNAL) -> None:
        self._same = same
        self.asked = threading.Event()
        self._wake: Callable[[], None] | None = None
        self._when = 0.0
        self._numbers = {signal.SIGINT, signal.SIGTERM}
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            self._numbers.add(signal.SIGHUP)
        self._dump: Callable[[], str] = lambda: _dumps().page([_dumps().dump_here("tokenyard serve")])

    def take(self) -> None:
        """Take the signals over; in the main thread, before there are others."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers | {signal.SIGUSR1})
        os.register_at_fork(after_in_child=_unblock)  # is run in the processes that Ray starts, too
        background = importlib.import_module("experts.background")  # asyncio and logging, once signals can't be lost
        background.watch_thread("signals", self._wait, background.end_process)

    def ask_first(self, wake: Callable[[], None] = lambda: None) -> None:
        """From now on the first signal asks to end. wake: called then, in another thread."""
        self._wake = wake

    def dump_by(self, dump: Callable[[], str]) -> None:
        """dump: the page that SIGUSR1 prints from now on; called in a thread of its own, and may take seconds."""
        self._dump = dump

    def go_on(self) -> None:
        """Raise Stopped once a signal asked to end."""
        if self.asked.is_set():
            raise Stopped

    def _wait(self) -> None:
        while True:
            number = signal.sigwait(self._numbers | {signal.SIGUSR1})
            if number == signal.SIGUSR1:
                background = importlib.import_module("experts.background")
                background.watch_thread("dump", self._print_dump, background.only_log, returns=True)
            else:
                self._take(number, time.monotonic())

    def _print_dump(self) -> None:
        text = self._dump()
        with contextlib.suppress(OSError, ValueError):  # nobody can read it
            print(text, file=sys.stderr, flush=True)

    def _take(self, number: int, now: float) -> None:
        if self._wake is None:
            os._exit(128 + number)  # nothing is started yet that would have to be ended
        if not self.asked.is_set():
            self._when = now
            self.asked.set()
            self._wake()
        elif now - self._when > self._same:
            os._exit(1)


def _dumps() -> Any:
    return importlib.import_module("experts.dump")


def _unblock() -> None:
    """In a child. SIGUSR1 stays blocked, which would end it; so does SIGHUP: a closing terminal sends it to the children
    too, which are needed for draining."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})


@cache
def taken() -> Signals:
    """This process's signals, taken over with the first call."""
    signals = Signals()
    signals.take()
    return signals
