"""Words of life: a process that dies is seen, one that stands still or has only closed its sockets is not."""

import fcntl
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest

from experts.exchange.links.life import WORD_BYTES, Deaths, life_word
from tests.patience import PATIENCE

pytestmark = pytest.mark.skipif(life_word() is None, reason="no C kernels, or a kernel without futex_waitv")


def _hold(link: socket.socket, pipe: Connection, count: int, forks: bool, ballast: int) -> None:
    """Sends words over `link`; with `forks` leaves a child that has all its descriptors."""
    memory = bytearray(os.urandom(1 << 20) * ballast)
    words = [life_word() for _ in range(count)]
    for word in words:
        assert word is not None
        socket.send_fds(link, [b"w"], [word])
    child = os.fork() if forks else 0
    if forks and child == 0:
        time.sleep(PATIENCE)
        os._exit(0)
    pipe.send(child)
    time.sleep(2 * PATIENCE + len(memory) * 0)


class Holder:
    """A process that holds words, and they."""

    def __init__(self, count: int = 1, forks: bool = False, ballast: int = 0) -> None:
        context: Any = multiprocessing.get_context("spawn")
        mine, theirs = socket.socketpair()
        here, there = context.Pipe()
        self.process = context.Process(target=_hold, args=(theirs, there, count, forks, ballast), daemon=True)
        self.process.start()
        theirs.close()
        self.words = [socket.recv_fds(mine, 1, 1)[1][0] for _ in range(count)]
        assert here.poll(PATIENCE)
        self.child = here.recv()
        mine.close()


@pytest.fixture
def deaths() -> Iterator[Deaths]:
    found = Deaths()
    yield found
    found.close()


@pytest.mark.parametrize("forks", [False, True], ids=["alone", "with a child that keeps all descriptors"])
def test_a_killed_process_is_seen(deaths: Deaths, forks: bool) -> None:
    holder = Holder(forks=forks)
    died = threading.Event()
    deaths.watch(holder.words[0], died.set)
    assert not died.wait(0.2)
    holder.process.kill()
    assert died.wait(PATIENCE)
    late = threading.Event()
    deaths.watch(holder.words[0], late.set)  # of one that is dead already
    assert late.wait(PATIENCE)
    if holder.child:
        os.kill(holder.child, signal.SIGKILL)


def test_a_stopped_process_is_not_dead(deaths: Deaths) -> None:
    holder = Holder()
    died = threading.Event()
    deaths.watch(holder.words[0], died.set)
    os.kill(holder.process.pid, signal.SIGSTOP)
    assert not died.wait(0.5)
    holder.process.kill()
    assert died.wait(PATIENCE)


def test_many_words_of_several_processes(deaths: Deaths) -> None:
    dying, living = Holder(300), Holder(100)
    seen: list[int] = []
    for number, word in enumerate(dying.words):
        deaths.watch(word, lambda number=number: seen.append(number))
    wrong = threading.Event()
    for word in living.words:
        deaths.watch(word, wrong.set)
    dying.process.kill()
    end = time.monotonic() + PATIENCE
    while len(seen) < 300 and time.monotonic() < end:
        time.sleep(0.01)
    assert sorted(seen) == list(range(300))
    assert not wrong.is_set()
    living.process.kill()


def test_the_own_process_lives(deaths: Deaths) -> None:
    """Words that many threads ask for at once are all held."""
    died = threading.Event()

    def ask() -> None:
        for _ in range(20):
            word = life_word()
            assert word is not None
            deaths.watch(word, died.set)
            os.close(word)

    asking = [threading.Thread(target=ask) for _ in range(8)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(PATIENCE)
    assert not died.wait(0.2)


def test_garbage_counts_as_dead_and_memory_that_may_shrink_is_refused(deaths: Deaths) -> None:
    died, word = threading.Event(), life_word()
    assert word is not None
    deaths.watch(word, died.set)
    os.pwrite(word, bytes(WORD_BYTES), 0)
    other = Holder()
    deaths.watch(other.words[0], lambda: None)  # has the thread look again
    assert died.wait(PATIENCE)
    other.process.kill()
    loose = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(loose, WORD_BYTES)
    with pytest.raises(ValueError, match="sealed"):
        deaths.watch(loose, died.set)
    fcntl.fcntl(loose, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    os.close(loose)
    with pytest.raises(OSError, match="Bad file descriptor"):
        deaths.watch(loose, died.set)
