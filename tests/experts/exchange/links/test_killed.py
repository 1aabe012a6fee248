"""Ranks as processes that are killed and stopped in the middle of steps: the others go on, and nothing of them is left."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from experts.epoch.membership import HERE, Membership, Role
from tests.experts.exchange.links.processes import Process, memory_files
from tests.patience import wait_until

Roles = dict[int, Role]


class Cell:
    """Processes by rank, and the number of their epoch."""

    def __init__(self, roles: Roles, words: bool = True) -> None:
        self.roles, self.words, self.epoch, self._lives = roles, words, 0, 0
        self.ranks = {rank: Process(rank, role, 0, words) for rank, role in roles.items()}
        self.ended: list[Process] = []

    def enter(self, *ranks: int, steps: int | None = None) -> None:
        """Of some ranks, or all, the next epoch."""
        self.epoch += 1
        chosen = [self.ranks[rank] for rank in ranks or sorted(self.ranks)]
        members = Membership(self.epoch, tuple(process.seat for process in chosen))
        for process in chosen:
            process.enter(members, steps)
        for process in chosen if steps is None else []:
            assert process.said("running") == self.epoch

    def done(self, *ranks: int) -> None:
        for rank in ranks or self.ranks:
            assert self.ranks[rank].said("done") == self.epoch

    def lost(self, *ranks: int) -> list[str]:
        """What each says of how the epoch ended."""
        found = [self.ranks[rank].said("lost") for rank in ranks]
        assert all(text.startswith(f"epoch {self.epoch}, step ") for text in found), found
        return found

    def kill(self, rank: int) -> None:
        self.ranks[rank].signal(signal.SIGKILL)
        self.ended.append(self.ranks.pop(rank))

    def revive(self, rank: int) -> None:
        self._lives += 1
        self.ranks[rank] = Process(rank, self.roles[rank], self._lives, self.words)

    def close(self) -> None:
        for process in (*self.ranks.values(), *self.ended):
            process.end()


@pytest.fixture
def cells() -> Iterator[list[Cell]]:
    """That the test makes."""
    made: list[Cell] = []
    yield made
    for cell in made:
        cell.close()


def check_named(rank: int, texts: list[str]) -> None:
    """Somebody has lost that one; others may have heard of it from them."""
    assert any(f"lost rank {rank} (" in text for text in texts), texts
    assert all(f"lost rank {rank} (" in text or "has left the epoch" in text for text in texts), texts


def test_the_others_go_on_and_nothing_is_left(cells: list[Cell]) -> None:
    """With three ranks with experts and one that brings tokens, and without words of life: a rank is stopped, left behind,
    goes on and comes back; another is killed, and one that leaves a child with all its descriptors; then all are."""
    cell = Cell({0: "expert", 1: "expert", 2: "expert", 3: "attention"}, words=False)
    cells.append(cell)
    cell.enter()

    cell.ranks[0].signal(signal.SIGSTOP)
    for rank in (1, 2, 3):
        cell.ranks[rank].leave()  # they hang in a step until someone says so
    cell.lost(1, 2, 3)
    cell.enter(1, 2, 3)
    cell.ranks[0].signal(signal.SIGCONT)
    assert "has left the epoch" in cell.ranks[0].said("lost")
    for rank in (1, 2, 3):
        cell.ranks[rank].leave()
    cell.lost(1, 2, 3)
    cell.enter(steps=5)
    cell.done()

    cell.enter()
    cell.kill(0)
    check_named(0, cell.lost(1, 2, 3))
    cell.enter(steps=5)
    cell.done()

    cell.enter()
    cell.ranks[1].fork()
    cell.kill(1)
    for rank in (2, 3):
        cell.ranks[rank].leave()
    cell.lost(2, 3)
    cell.enter(steps=5)
    cell.done()

    cell.enter()
    check_nothing_left(cell)


def check_nothing_left(cell: Cell) -> None:
    """After all that live are killed at once."""
    everyone = [*cell.ranks.values(), *cell.ended]
    names = {f"@tokenyard/{HERE}/{process.seat.exchange_port}" for process in everyone}
    memory = {file for process in cell.ranks.values() for file in process.held_memory()}
    children = [process.child for process in everyone if process.child]
    for rank in list(cell.ranks):
        cell.kill(rank)
    for process in everyone:
        process.end()
    wait_until(lambda: not names & set(Path("/proc/net/unix").read_text().split()), "names to be gone")
    wait_until(lambda: not any(alive(child) for child in children), "children to be gone")
    wait_until(lambda: not memory & everyones_memory(), "memory to be gone")


def everyones_memory() -> set[tuple[int, int]]:
    return {file for folder in Path("/proc").glob("[0-9]*") for file in memory_files(folder.name)}


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("words", [True, False], ids=["words", "sockets"])
@pytest.mark.parametrize(
    "roles",
    [{0: "expert", 1: "expert", 2: "attention"}, {0: "expert", 1: "expert", 2: "attention", 3: "attention"}],
    ids=["1+2", "2+2"],
)
def test_ranks_are_killed_at_any_moment(cells: list[Cell], roles: Roles, words: bool) -> None:
    cell = Cell(roles, words)
    cells.append(cell)
    seed = random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    for victim in chance.sample(sorted(roles) * 3, 3 * len(roles)):
        cell.enter()
        time.sleep(chance.random() / 20)
        cell.kill(victim)
        check_named(victim, cell.lost(*cell.ranks))
        cell.enter(steps=5)
        cell.done()
        cell.revive(victim)
    check_nothing_left(cell)


def test_memory_of_this_process_is_seen() -> None:
    before = everyones_memory()
    file = os.memfd_create("a test")
    try:
        assert len(memory_files(os.getpid()) - before) == 1
    finally:
        os.close(file)
