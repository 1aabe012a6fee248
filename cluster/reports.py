"""RankReports: the newest running totals of every rank, so that a silent one holds up neither status nor metrics."""

import asyncio
from collections.abc import Mapping, Sequence

from cluster.ranks import RankHandle
from cluster.status import RankView
from experts.rank import RankReport
from router_svc.engine.step_loop import EngineStats

ANSWER = 2.0  # s for a process's event loop to answer: status and metrics do without those that take longer
NEEDED = 60.0  # s, where nothing goes on without the answer

Report = tuple[RankReport, EngineStats | None]


async def report_of(handle: RankHandle, seconds: float = ANSWER) -> Report:
    """A rank's running totals, of its engine too where it has one. Raises TimeoutError and what Ray raises."""
    got = await asyncio.wait_for(handle.actor.report.remote(), seconds)
    return got if isinstance(got, tuple) else (got, None)


class RankReports:
    """Remembers by seat."""

    def __init__(self) -> None:
        self._last: dict[int, Report] = {}

    async def views(self, ranks: Sequence[RankHandle], states: Mapping[int, str]) -> list[RankView]:
        """Every rank's view, given the seats' states; of a dead or silent one by its last report."""
        live = [handle for handle in ranks if states[handle.seat.rank] != "dead"]
        got = await asyncio.gather(*map(report_of, live), return_exceptions=True)
        for handle, report in zip(live, got, strict=True):
            if not isinstance(report, BaseException):
                self._last[handle.seat.rank] = report
        return [self._view(handle, states[handle.seat.rank]) for handle in ranks]

    def _view(self, handle: RankHandle, state: str) -> RankView:
        last = self._last.get(handle.seat.rank)
        if last is None:
            return RankView(handle.seat, state, None, None)
        totals, stats = last
        return RankView(
            handle.seat, state, totals.loads, None if state == "dead" else stats, totals.exchange,
            0 if state == "dead" else totals.memory_bytes,
        )  # fmt: skip
