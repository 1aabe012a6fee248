"""Leases: one bad call of one rank costs neither its lease nor another's, and whatever ends them is dealt with."""

import asyncio
from typing import Any

from cluster.control.leases import Leases
from cluster.state.roster import Seat
from experts.epoch.membership import Member
from experts.worker.remote import Gone


class Rank:
    """Stands where a rank's port is; `answers` are what its next calls give, the last for ever."""

    def __init__(self, *answers: BaseException | float) -> None:
        self.answers, self.calls = list(answers), 0

    async def keep(self) -> None:
        self.calls += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        await asyncio.sleep(answer)

    async def called(self, times: int) -> None:
        async with asyncio.timeout(30):
            while self.calls < times:
                await asyncio.sleep(0.01)


def leases(told: list[str]) -> Leases:
    async def hung(seat: Seat) -> None:
        told.append(f"hung {seat.rank}")

    return Leases(hung, told.append, lambda what: told.append(f"over: {what}"), patience=0.2, renew=0.01)


def seat(rank: int, port: Any) -> Seat:
    return Seat(Member(rank, "expert"), port)


async def test_a_bad_call_costs_no_rank_its_lease() -> None:
    told: list[str] = []
    book = leases(told)
    bad, good = Rank(ValueError("no\nidea"), ValueError("no\nidea"), 0.0), Rank(0.0)
    for rank, port in enumerate((bad, good)):
        book.keep(seat(rank, port))
    await bad.called(5)
    await good.called(5)
    assert told == ["lease of rank 0 could not be renewed: ValueError: no\nidea"]
    silent, dead = Rank(60.0), Rank(Gone())
    book.keep(seat(2, silent))
    book.keep(seat(3, dead))
    await silent.called(2)
    await good.called(good.calls + 5)
    assert told[1] == "hung 2"
    assert dead.calls == 1
    book.stop()
    await asyncio.sleep(0)
    assert not [line for line in told if line.startswith("over")]


async def test_the_end_of_a_lease_task_is_told_and_leaves_the_others() -> None:
    told: list[str] = []
    book = leases(told)
    exits, good = Rank(SystemExit(1)), Rank(0.0)
    book.keep(seat(0, exits))
    book.keep(seat(1, good))
    await exits.called(1)
    await good.called(good.calls + 3)
    assert told == ["over: task lease of rank 0 ended with SystemExit: 1"]
    book.stop()
