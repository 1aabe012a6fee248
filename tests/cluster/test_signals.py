"""Signals in processes of their own: what the first and the second do, whatever the main thread is in."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.patience import PATIENCE

# The main thread sits in native code that no signal interrupts, as Ray's does while it connects.
_STUCK = """
import ctypes
from cluster.serve.signals import Signals
signals = Signals({same})
signals.take()
signals.ask_first(lambda: print("asked", flush=True))
print("up", flush=True)
ctypes.CDLL(None).sem_wait(ctypes.create_string_buffer(64))
"""
_LOADING = """
import time
from cluster.serve.signals import taken
taken()
print("up", flush=True)
time.sleep(60)
"""
_CHILD = """
import signal, subprocess, sys
from cluster.serve.signals import taken
taken()
code = "import signal; print(sorted(int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
print("up", flush=True)
subprocess.run([sys.executable, "-c", code], preexec_fn=lambda: None, check=True)
"""


@contextmanager
def started(code: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs `code` and has written "up"."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_asks_and_a_later_one_ends_native_code(number: signal.Signals) -> None:
    with started(_STUCK.format(same=0)) as process:
        assert process.stdout is not None
        process.send_signal(number)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(number)
        assert process.wait(PATIENCE) == 1


def test_the_same_ctrl_c_may_come_twice() -> None:
    with started(_STUCK.format(same=10 * PATIENCE)) as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)


def test_a_signal_while_modules_load_ends_the_process() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with started(_LOADING) as process:
            process.send_signal(number)
            assert process.wait(PATIENCE) == 128 + number


def test_a_hangup_that_was_ignored_stays_ignored() -> None:
    with started(_LOADING, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM


def test_processes_that_are_started_can_be_ended() -> None:
    with started(_CHILD) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"[{int(signal.SIGHUP)}, {int(signal.SIGUSR1)}]\n"
