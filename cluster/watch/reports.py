"""Views of ranks from their newest running totals, so that a silent rank holds up neither status nor metrics."""

import asyncio
from collections.abc import Sequence

from cluster.state.roster import Seat
from cluster.watch.status import RankView
from experts.worker.deadlines import DEADLINES


async def views_of(seats: Sequence[Seat]) -> list[RankView]:
    """Every rank's view; of a dead or silent one by its last report."""
    live = [seat for seat in seats if seat.state != "dead"]
    calls = (asyncio.wait_for(seat.port.report(), DEADLINES.answer) for seat in live)
    got = await asyncio.gather(*calls, return_exceptions=True)
    for seat, report in zip(live, got, strict=True):
        if not isinstance(report, BaseException):
            seat.report = report
    return [view_of(seat) for seat in seats]


def view_of(seat: Seat) -> RankView:
    """A rank's view by its last report."""
    last, dead = seat.report, seat.state == "dead"
    if last is None:
        return RankView(seat.member, seat.state, None, None)
    return RankView(
        seat.member, seat.state, last.loads, None if dead else last.engine, last.exchange,
        0 if dead else last.memory_bytes,
    )  # fmt: skip
