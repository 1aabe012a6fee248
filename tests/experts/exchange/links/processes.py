"""Ranks of links as processes of their own, which a test commands."""

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from experts.epoch.membership import Member, Membership, Role
from experts.errors import RankLost
from experts.exchange.links import hub
from tests.experts.exchange.links.ranks import Rank
from tests.patience import PATIENCE

_RUNNING = 20  # steps after which a rank says so


class Process:
    """A rank's process. What it says of an epoch comes in order: "running", then "done" or "lost" with the reason."""

    def __init__(self, rank: int, role: Role, incarnation: int = 0, words: bool = True) -> None:
        """words: it has words of life, by which its death is seen without its sockets."""
        spawn: Any = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_main, args=(rank, role, incarnation, words, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.rank = rank
        self._seat: Member | None = None
        self.child = 0  # a process that it has forked

    @property
    def seat(self) -> Member:
        self._seat = self._seat or self.said("seat")
        return self._seat

    def enter(self, members: Membership, steps: int | None = None) -> None:
        """Begin an epoch and so many steps in it, or steps without end."""
        self._pipe.send(("enter", members, steps))

    def leave(self) -> None:
        """End the epoch there, by a thread that runs no steps."""
        self._pipe.send(("leave",))

    def fork(self) -> None:
        """Leave a child that has all its descriptors and does nothing."""
        self._pipe.send(("fork",))
        self.child = self.said("child")

    def said(self, what: str) -> Any:
        """The next thing that it says, which is `what`."""
        assert self._pipe.poll(2 * PATIENCE), f"rank {self.rank} says nothing"
        found, value = self._pipe.recv()
        assert found == what, f"rank {self.rank} says {found}: {value}, not {what}"
        return value

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> None:
        """Kill it and its child."""
        if self.child:  # which has what `join` waits for
            os.kill(self.child, signal.SIGKILL)
            self.child = 0
        self.process.kill()
        self.process.join(PATIENCE)

    def held_memory(self) -> set[tuple[int, int]]:
        """Memory files that it has open, by device and number."""
        return memory_files(self.process.pid)


def memory_files(pid: int | str) -> set[tuple[int, int]]:
    """Of any process that can be looked into."""
    found = set()
    try:
        for file in Path(f"/proc/{pid}/fd").iterdir():
            if os.readlink(file).startswith("/memfd:"):
                found.add((file.stat().st_dev, file.stat().st_ino))
    except OSError:  # gone meanwhile
        pass
    return found


def _main(number: int, role: Role, incarnation: int, words: bool, pipe: Connection) -> None:
    torch.set_num_threads(1)
    if not words:
        hub.life_word = lambda: None
    rank = Rank(number, role, incarnation)
    said = threading.Lock()

    def say(what: str, value: object = None) -> None:
        with said:
            pipe.send((what, value))

    def run(members: Membership, steps: int | None) -> None:
        try:
            rank.enter(members)
            step = 0
            while step != steps:
                rank.step(step)
                step += 1
                if step == _RUNNING:
                    say("running", members.epoch)
            last = "done", members.epoch
        except RankLost as lost:
            last = "lost", str(lost)
        except BaseException as error:
            last = "failed", repr(error)
        rank.leave()
        say(*last)

    say("seat", rank.seat)
    while True:
        command, *values = pipe.recv()
        if command == "enter":
            threading.Thread(target=run, args=values, daemon=True).start()
        elif command == "leave":
            rank.leave()
        elif (child := os.fork()) == 0:
            time.sleep(4 * PATIENCE)
            os._exit(0)
        else:
            say("child", child)
