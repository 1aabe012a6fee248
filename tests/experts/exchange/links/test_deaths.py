"""A rank dies after any number of bytes: the others say who, where, and go on without it on the links that they have."""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest

from experts.epoch.membership import Member, Membership
from experts.errors import RankLost
from experts.exchange.links.frame import HEAD_BYTES, MAGIC, Frame, Kind
from tests.experts.exchange.links.ends import Call
from tests.experts.exchange.links.proxy import Life, Proxy
from tests.experts.exchange.links.ranks import Rank
from tests.patience import PATIENCE, wait_until

STEPS = 2
FIRST_INCARNATION = 1000  # all take as many bytes in a hello
_MAGIC_AT = 44  # in a head


@dataclass(frozen=True)
class Running:
    """An epoch with the victim. sent: by it to the watched rank"""

    life: Life
    victim: Rank
    sent: bytearray
    calls: dict[int, Call]

    def ended(self) -> dict[int, BaseException | None]:
        """How it did for the others."""
        errors = {rank: call.ended() for rank, call in self.calls.items() if rank != self.victim.seat.rank}
        self.victim.close()
        with self.life.lock:
            self.life.end()
        self.calls[self.victim.seat.rank].ended()
        return errors


class Cell:
    """Ranks that live on, and one that dies in each epoch and comes back in another life."""

    def __init__(self, roles: dict[int, str], victim: int, watched: int, near: bool, together: bool) -> None:
        """watched: whose link to the victim is cut after so many bytes, all others then
        near: over Unix sockets
        """
        self.roles, self.victim, self.watched, self.near, self.together = roles, victim, watched, near, together
        self.ranks = {rank: self.made(rank, 0) for rank in roles if rank != victim}
        self.epoch = 0

    def made(self, rank: int, incarnation: int) -> Rank:
        return Rank(rank, self.roles[rank], incarnation, together=self.together)  # type: ignore[arg-type]

    def close(self) -> None:
        for rank in self.ranks.values():
            rank.close()

    def links(self) -> set[int]:
        """Between those that live on."""
        keys = {(rank.seat.rank, rank.seat.incarnation) for rank in self.ranks.values()}
        return {id(rank.hub._links[key]) for rank in self.ranks.values() for key in keys if key in rank.hub._links}

    def members(self, *extra: Member) -> Membership:
        seats = [*(rank.seat for rank in self.ranks.values()), *extra]
        return Membership(self.epoch, tuple(sorted(seats, key=lambda seat: seat.rank)))

    def begin(self, limit: int | None) -> "Running":
        """Steps in an epoch with the victim, which dies after `limit` bytes to the watched rank, if it comes so far."""
        self.epoch += 1
        life, victim = Life(), self.made(self.victim, FIRST_INCARNATION + self.epoch)
        proxies = {}
        for rank, other in self.ranks.items():
            called = rank < self.victim  # is the victim
            target, end = (victim.hub.port, "listener") if called else (other.hub.port, "caller")
            proxies[rank] = Proxy(life, target, end, self.near, limit if rank == self.watched else None)
        members = self.members(victim.seat)

        def as_seen_by(rank: int) -> Membership:
            """The proxies stand between the victim and the others."""
            between = {rank: proxies[rank].port for rank in self.ranks}
            ports = between if rank == self.victim else {self.victim: between[rank]}
            seats = (replace(seat, exchange_port=ports.get(seat.rank, seat.exchange_port)) for seat in members.members)
            return replace(members, members=tuple(seats))

        seen = threading.Event()  # by the watched one; nobody else leaves before

        def run(rank: Rank) -> None:
            try:
                rank.enter(as_seen_by(rank.seat.rank))
                rank.steps(STEPS + 1)
            finally:
                if rank.seat.rank == self.watched:
                    seen.set()
                assert seen.wait(PATIENCE)
                rank.leave()

        calls = {rank: Call(lambda one=one: run(one)) for rank, one in {**self.ranks, self.victim: victim}.items()}
        return Running(life, victim, proxies[self.watched].sent, calls)

    def go_on(self, running: Running | None = None) -> None:
        """An epoch of those that are left, which begins while another may run, and right steps in it."""
        for one in self.ranks.values():
            one.leave(given_up=self.epoch)
        self.epoch += 1
        members = self.members()
        meetings = {rank: Call(lambda one=one: one.meet(members)) for rank, one in self.ranks.items()}
        if running is not None:
            for rank, error in running.ended().items():
                assert isinstance(error, RankLost), (rank, error)
                assert error.epoch == self.epoch - 1, (rank, str(error))
        for rank, meeting in meetings.items():
            assert meeting.ended() is None, rank
            self.ranks[rank].take(members, meeting.result)
        for call in [Call(lambda one=one: one.steps(1)) for one in self.ranks.values()]:
            assert call.ended() is None
        for one in self.ranks.values():
            one.leave()


def frames_of(sent: bytes) -> list[tuple[int, Frame]]:
    """Frames on a link, each with where it begins, behind the hello."""
    at = sent.index(MAGIC.to_bytes(4, "little")) - _MAGIC_AT
    found = []
    while at < len(sent):
        frame = Frame.unpack(sent[at : at + HEAD_BYTES])
        found.append((at, frame))
        at += HEAD_BYTES + frame.size
    return found


def where(frame: Frame) -> tuple[int, int]:
    """Step and layer of what a frame is for."""
    return frame.step, frame.layer if frame.kind not in (Kind.MEET, Kind.HEADER) else -1


CASES = {
    "an expert to a source": ({0: "expert", 1: "expert", 2: "attention", 3: "attention"}, 0, 2, False, False),
    "a source to an expert": ({0: "expert", 1: "expert", 2: "attention", 3: "attention"}, 3, 1, True, False),
    "one of both to another": ({0: "both", 1: "both", 2: "both"}, 1, 2, True, True),
}


@pytest.fixture(params=CASES)
def cell(request: pytest.FixtureRequest) -> Iterator[Cell]:
    made = Cell(*CASES[request.param])
    yield made
    made.close()


def die_after(cell: Cell, limit: int, places: set[tuple[int, int]]) -> None:
    """places: steps and layers in which the watched rank may notice."""
    before = cell.links()
    errors = cell.begin(limit).ended()
    dead = f"lost rank {cell.victim} ({cell.roles[cell.victim]})"
    for rank, error in errors.items():
        assert isinstance(error, RankLost), (limit, rank, error)
        assert error.epoch == cell.epoch, (limit, rank, str(error))
        assert dead in error.detail or "has left the epoch" in error.detail, (limit, rank, str(error))
    seen = errors[cell.watched]
    assert dead in seen.detail, (limit, str(seen))
    layer = re.search(r"of layer (\d+)", seen.detail)
    assert (seen.step, int(layer[1]) if layer else -1) in places, (limit, str(seen), places)
    cell.go_on()
    assert not before or cell.links() == before, f"after {limit} bytes other links were made anew"


def cuts(frames: list[tuple[int, Frame]], each: int) -> Iterator[tuple[int, set[tuple[int, int]]]]:
    """Bytes after which the rank dies, with the steps and layers in which that is seen.

    each: 0 = after the first byte of a frame, in its head, before its body, in it and behind it; else every so many bytes

    With the first byte behind its word that it is here it has met all others.
    """
    for (_, frame), (end, after) in pairwise(frames[1:]):
        if frame.step == STEPS:
            return  # in which some may end before it is seen
        size = HEAD_BYTES + frame.size
        offsets = range(1, size, each) if each else sorted({1, 20, HEAD_BYTES, HEAD_BYTES + frame.size // 2, size})
        for offset in offsets:
            yield end - size + offset, {where(frame), where(after)} if offset == size else {where(frame)}


def undisturbed(cell: Cell) -> bytes:
    """What the victim sends to the watched rank."""
    running = cell.begin(None)
    assert set(running.ended().values()) == {None}
    return bytes(running.sent)


def test_a_rank_that_dies_anywhere_is_named_and_the_others_go_on(cell: Cell) -> None:
    for limit, places in cuts(frames_of(undisturbed(cell)), 0):
        die_after(cell, limit, places)


@pytest.mark.slow
def test_a_rank_that_dies_at_any_byte_is_named_and_the_others_go_on(cell: Cell) -> None:
    for limit, places in cuts(frames_of(undisturbed(cell)), 7):
        die_after(cell, limit, places)


def test_a_rank_that_dies_as_all_meet_keeps_nobody_from_the_next_epoch(cell: Cell) -> None:
    """Some have met it and some have not; all are told of the next epoch."""
    met = frames_of(undisturbed(cell))[1][0]
    for limit in {*range(0, met, 19), met - HEAD_BYTES, met - 1, met}:
        running = cell.begin(limit)
        wait_until(lambda running=running: running.life.ended, "the end of a life")
        cell.go_on(running)
