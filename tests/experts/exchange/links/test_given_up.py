"""Epochs that are given up: beside running steps, which go on bit for bit as without them; and in the middle of steps."""

import socket
import time
from collections.abc import Iterator

import pytest
import torch

from experts.epoch.membership import Membership
from experts.errors import RankLost
from experts.exchange.links.circle import Rows, Trouble
from experts.exchange.links.frame import Outcome
from experts.exchange.routing import Tables
from experts.exchange.split import SplitPolicy
from tests.experts.exchange.links.ends import Call, unread
from tests.experts.exchange.links.ranks import EXPERTS, FORM, Rank, placement, record_of
from tests.patience import PATIENCE, wait_until

ROUNDS = 12


def members(epoch: int, *ranks: Rank) -> Membership:
    return Membership(epoch, tuple(sorted((rank.seat for rank in ranks), key=lambda seat: seat.rank)))


@pytest.fixture
def ranks() -> Iterator[list[Rank]]:
    """Two with experts and two that bring tokens, in epoch 1; the last one in none yet."""
    made = [Rank(0, "expert"), Rank(1, "both"), Rank(2, "attention"), Rank(3, "attention")]
    together([Call(lambda one=one: one.enter(members(1, *made[:3]))) for one in made[:3]])
    yield made
    for rank in made:
        rank.close()


def together(calls: list[Call]) -> None:
    assert [call.ended() for call in calls] == [None] * len(calls)


class Steps:
    """Of some ranks, each in a thread, until one of those that bring tokens asks for an end."""

    def __init__(self, ranks: list[Rank]) -> None:
        self.ranks, self.last = ranks, False
        self.calls = [Call(lambda one=one: self._run(one)) for one in ranks]

    def _run(self, rank: Rank) -> None:
        number = 0
        while not rank.step(number, stop=self.last and bool(rank.own)):
            number += 1

    def ended(self) -> None:
        self.last = True
        together(self.calls)

    def go_on(self) -> None:
        """Return once some more have ended."""
        before = [len(rank.results) for rank in self.ranks]
        wait_until(lambda: all(len(r.results) > n + 4 for r, n in zip(self.ranks, before, strict=True)), "more steps")


def prepare(rank: Rank, epoch: Membership) -> Call:
    exchange = rank.exchange
    assert exchange is not None
    return Call(lambda: exchange.prepare(record_of(epoch)))


def drop(rank: Rank, epoch: Membership) -> Call:
    exchange = rank.exchange
    assert exchange is not None
    return Call(lambda: exchange.drop_epoch(epoch.epoch))


def test_steps_beside_epochs_that_are_given_up_are_those_without_them(ranks: list[Rank]) -> None:
    *running, newcomer = ranks
    steps = Steps(running)
    held, cut_short = placement(members(1, *running)), []
    for epoch in range(2, 2 + ROUNDS):
        wanted = members(epoch, *ranks)
        if epoch % 2:  # the newcomer does not come: who prepares for it waits
            cut_short += [prepare(rank, wanted) for rank in running]
            steps.go_on()
        else:  # all come, but one is slow to say so in its headers; the newcomer waits in its first one
            slow = running[epoch // 2 % 3]
            built = Call(lambda slow=slow, wanted=wanted: slow.exchange._build(record_of(wanted), beside=True))
            ready = [prepare(rank, wanted) for rank in running if rank is not slow]
            newcomer.take(wanted, newcomer.meet(wanted), held)
            together([built, *ready])
            cut_short.append(Call(lambda: newcomer.step(0)))
            steps.go_on()
            built.result.close()
        together([drop(rank, wanted) for rank in running])
        newcomer.leave()
    last = members(2 + ROUNDS, *ranks)
    ready = [prepare(rank, last) for rank in running]
    newcomer.take(last, newcomer.meet(last), held)
    joined = Steps([newcomer])
    together(ready)
    assert {type(call.ended()) for call in cut_short} == {RankLost}
    joined.go_on()
    steps.go_on()
    joined.last = True
    steps.ended()
    joined.ended()
    assert {rank.exchange.epoch for rank in ranks if rank.exchange} == {2 + ROUNDS}
    check_against_undisturbed(running)


def check_against_undisturbed(ranks: list[Rank]) -> None:
    """The same steps once more, by other ranks that nobody disturbs."""
    again = [Rank(rank.seat.rank, rank.seat.role) for rank in ranks]
    try:
        count = len(ranks[-1].results) // 2
        together([Call(lambda one=one: (one.enter(members(1, *again)), one.steps(count))) for one in again])
        for rank, other in zip(ranks, again, strict=True):
            assert len(rank.results) == len(other.results)
            assert all(map(torch.equal, rank.results, other.results))
    finally:
        for rank in again:
            rank.close()


def test_who_leaves_after_epochs_were_given_up_is_noticed(ranks: list[Rank]) -> None:
    """The one that leaves was in no call, so that it only says that nothing more comes."""
    *running, newcomer = ranks
    together([Call(lambda one=one: one.steps(1)) for one in running])
    for epoch in (2, 3, 4):
        wanted = members(epoch, *ranks)
        ready = [prepare(rank, wanted) for rank in running]
        group = newcomer.meet(wanted)
        together(ready)
        together([drop(rank, wanted) for rank in running])
        group.close()
    running[0].leave()
    for rank in running[1:]:
        error = Call(lambda rank=rank: rank.step(1)).ended()
        assert isinstance(error, RankLost)
        assert "rank 0 (expert) has left the epoch" in error.detail


def test_the_call_of_an_epoch_that_was_given_up_reads_no_link(ranks: list[Rank]) -> None:
    """What comes may be for the epoch that is met for now, whose call sleeps until something does."""
    hub = ranks[0].hub
    hub._begin(2)
    hub._begin(3)
    with pytest.raises(RankLost, match="given up"):
        hub._peers(members(2, *ranks[:3]), 0, time.monotonic() + PATIENCE, ())


def test_an_epoch_ends_while_both_ends_have_more_under_way_than_the_connection_takes() -> None:
    """Ten times as much; each has a frame of the other's that it did not ask for, and reads no further."""
    ranks = [Rank(0, "both"), Rank(1, "both")]
    both = members(1, *ranks)
    where = Tables(placement(both), both, SplitPolicy())
    meetings = [Call(lambda one=one: one.meet(both)) for one in ranks]
    assert [meeting.ended() for meeting in meetings] == [None, None]
    circles = [meeting.result.circle for meeting in meetings]
    links = [ranks[0].hub._links[1, 0]._connection, ranks[1].hub._links[0, 0]._connection]  # type: ignore[attr-defined]
    row = 8 * FORM.top_k + FORM.hidden * FORM.dtype.itemsize
    big = 10 * links[0].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // row

    def send(member: int, layer: int, tokens: int) -> Call:
        ids, first = torch.zeros((tokens, FORM.top_k), dtype=torch.int32), (1 - member) * EXPERTS
        rows = Rows(torch.ones(tokens, FORM.hidden), ids, torch.ones(tokens, FORM.top_k))
        return Call(lambda: circles[member].dispatch(layer, rows, where, ids + first))

    for circle in circles:
        circle.step(0, 1, [big, big], 0)
    assert [send(member, 0, 1).ended() for member in (0, 1)] == [None, None]
    calls = [send(member, 1, big) for member in (0, 1)]
    wait_until(lambda: all(unread(link) > 1 << 14 for link in links), "full connections")
    assert all(call.running for call in calls)
    circles[0].abort()
    errors = [call.ended() for call in calls]
    assert [type(error) for error in errors] == [Trouble, Trouble]
    assert errors[0].outcome == Outcome.OVER  # type: ignore[union-attr]
    assert errors[1].outcome in (Outcome.LEFT, Outcome.DEAD)  # type: ignore[union-attr]
    circles[1].abort()
    after = members(2, *ranks)
    for call in [Call(lambda one=one: (one.enter(after), one.steps(2))) for one in ranks]:
        assert call.ended() is None
    for rank in ranks:
        rank.close()
