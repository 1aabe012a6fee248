"""The Ray actor around an expert rank."""

import asyncio

from experts.background import watch_thread
from experts.membership import EpochRecord
from experts.rank import RankReport
from experts.rank_actor import RankActor
from experts.rank_loop import ExpertRankLoop
from experts.threads import in_own_thread


class ExpertActor(RankActor):
    """One expert rank's process. Methods are called by the supervisor; `ring` by attention ranks."""

    async def load(self) -> None:
        """Read this rank's experts."""

        def note(done: int, total: int) -> None:
            self._progress = (done, total)

        await asyncio.to_thread(in_own_thread, lambda: self._seat.load(note))

    async def join(self, record: EpochRecord) -> None:
        """Take the seat in an epoch and start its step loop."""
        layers = await asyncio.to_thread(self._seat.join, record)
        loop = asyncio.get_running_loop()

        def lost(reason: str) -> None:
            loop.call_soon_threadsafe(self._end, reason)

        assert self._seat.exchange is not None, "a joined seat has an exchange"
        body = ExpertRankLoop(layers, self._seat.exchange, self._seat.bell, lost, awaited=record.planned)

        def ended(what: str) -> None:  # a body deals with its exceptions itself: this is the worst case
            self._seat.leave()
            lost(what)

        watch_thread("step-loop", lambda: self._run(body, loop), ended, returns=True)

    async def leave(self, reason: str) -> None:
        """Drop the epoch's group."""
        self._seat.leave()
        self._end(reason)

    async def report(self) -> RankReport:
        """Running totals."""
        return self._seat.report()

    def _run(self, body: ExpertRankLoop, loop: asyncio.AbstractEventLoop) -> None:
        body.run()
        loop.call_soon_threadsafe(self._end, "")
