"""The Ray actor around an expert rank. Its event loop only passes messages; work runs in threads."""

import asyncio
import os
import threading

from experts.lease import Lease
from experts.membership import EpochRecord
from experts.rank import RankOrder, RankReport, RankSeat
from experts.rank_loop import ExpertRankLoop
from experts.threads import in_own_thread


class ExpertActor:
    """One expert rank's process. Methods are called by the supervisor; `ring` by attention ranks."""

    def __init__(self, order: RankOrder) -> None:
        self._seat = RankSeat(order)
        self._progress = (0, 0)
        self._lease = Lease(lambda: os._exit(1))
        self._ended: asyncio.Future[str] = asyncio.get_event_loop().create_future()

    async def load(self) -> None:
        """Read this rank's experts."""

        def note(done: int, total: int) -> None:
            self._progress = (done, total)

        await asyncio.to_thread(in_own_thread, lambda: self._seat.load(note))

    async def progress(self) -> tuple[int, int]:
        """(bytes loaded, bytes in all)."""
        return self._progress

    async def join(self, record: EpochRecord) -> None:
        """Take the seat in an epoch and start its step loop."""
        layers = await asyncio.to_thread(self._seat.join, record)
        loop = asyncio.get_running_loop()

        def lost(reason: str) -> None:
            loop.call_soon_threadsafe(self._end, reason)

        assert self._seat.exchange is not None, "a joined seat has an exchange"
        body = ExpertRankLoop(layers, self._seat.exchange, self._seat.bell, lost)
        threading.Thread(target=self._run, args=(body, loop), name="step-loop", daemon=True).start()

    async def ended(self) -> str:
        """Waits until the step loop ends; empty when it was asked to, else why."""
        return await asyncio.shield(self._ended)

    async def ring(self, step: int) -> None:
        """Some rank wants step `step` run."""
        self._seat.bell.ring(step)

    async def leave(self, reason: str) -> None:
        """Drop the epoch's group."""
        self._seat.leave()
        self._end(reason)

    async def keep(self) -> None:
        """The supervisor's sign of life."""
        self._lease.renew()

    async def report(self) -> RankReport:
        """Running totals."""
        return self._seat.report()

    def _run(self, body: ExpertRankLoop, loop: asyncio.AbstractEventLoop) -> None:
        body.run()
        loop.call_soon_threadsafe(self._end, "")

    def _end(self, reason: str) -> None:
        if not self._ended.done():
            self._ended.set_result(reason)
