"""RankActor: what the Ray actors of every role answer alike. Its event loop only passes messages; work runs in threads."""

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Any

from experts.doorbell import Moment
from experts.dump import ProcessDump, dump_here
from experts.exchange.split import SplitPolicy
from experts.lease import Lease
from experts.loads import StepLoads
from experts.membership import EpochRecord
from experts.migrate import Move, Staged
from experts.placement import Placement
from experts.rank import RankOrder, RankSeat
from experts.threads import in_own_thread

_SWITCH_INTERVAL = 5e-4  # s that another thread's Python may hold up the step thread; the default is 5 ms


class RankActor:
    """A seat with its lease. Created inside the actor's event loop."""

    def __init__(self, order: RankOrder) -> None:
        sys.setswitchinterval(_SWITCH_INTERVAL)
        self._seat = RankSeat(order)
        self._progress = (0, 0)
        self._lease = Lease(lambda: os._exit(1))
        loop = asyncio.get_event_loop()
        self._ended: asyncio.Future[str] = loop.create_future()
        self._news = asyncio.Event()
        self._seat.on_steps = lambda: loop.call_soon_threadsafe(self._tell_steps)

    async def progress(self) -> tuple[int, int]:
        """(bytes loaded, bytes in all)."""
        return self._progress

    async def ended(self) -> str:
        """Waits until the step loop ends; empty when it was asked to, else why."""
        return await asyncio.shield(self._ended)

    async def ring(self, wanted: Moment) -> None:
        """Some rank wants a step run."""
        self._seat.bell.ring(wanted)

    async def keep(self) -> None:
        """The supervisor's sign of life."""
        self._lease.renew()

    async def stepped(self) -> None:
        """Waits until `steps` has something, so that an idle rank need not be asked; a later call ends an earlier one."""
        self._news.set()
        self._news = news = asyncio.Event()
        if not self._seat.has_steps:
            await news.wait()

    async def steps(self) -> list[StepLoads]:
        """Loads of the steps that ended since the last call."""
        return await asyncio.to_thread(self._seat.steps)

    async def version(self) -> int:
        """Placement version of the newest step."""
        return self._seat.exchange.version if self._seat.exchange is not None else 0

    async def stage(self, moves: Sequence[Move], bandwidth: float) -> list[Staged]:
        """Fetch experts beside the running steps; see RankSeat."""
        return await asyncio.to_thread(in_own_thread, lambda: self._seat.stage(moves, bandwidth))

    async def offer(self, placement: Placement, policy: SplitPolicy | None = None) -> None:
        """Have a newer placement used as soon as all ranks offer it. Raises MoveFailed."""
        await asyncio.to_thread(in_own_thread, lambda: self._seat.offer(placement, policy))

    async def drop_staged(self) -> None:
        """Forget what was staged and not offered."""
        self._seat.drop_staged()

    async def prepare(self, record: EpochRecord) -> None:
        """Build the next epoch's group beside the running one, and take it as soon as all members have it.

        A rank that is not in the record ends its loop then. Raises RankLost when the group did not come together.
        """
        await asyncio.to_thread(in_own_thread, lambda: self._seat.prepare(record))

    async def drop_epoch(self) -> None:
        """Forget an epoch that not all members are ready for."""
        self._seat.drop_epoch()

    async def epoch(self) -> int:
        """Of the newest step."""
        return self._seat.exchange.epoch if self._seat.exchange is not None else 0

    async def dump(self, name: str) -> ProcessDump:
        """What this process is doing; `name` is shown."""
        return dump_here(name, self._seat.moment())

    def _tell_steps(self) -> None:
        self._news.set()

    def _end(self, reason: str) -> None:
        if not self._ended.done():
            self._ended.set_result(reason)


class RingingActor(RankActor):
    """A seat that brings tokens, and therefore rings the others' bells."""

    def __init__(self, order: RankOrder) -> None:
        super().__init__(order)
        self._loop = asyncio.get_event_loop()
        self._peers: list[Any] = []

    async def meet(self, peers: list[Any]) -> None:
        """The other ranks' actors, from now on."""
        self._peers = peers

    def _ring(self, wanted: Moment) -> None:
        """From any thread: the own bell at once, the peers' by a call each that nobody waits for."""
        self._seat.bell.ring(wanted)
        self._loop.call_soon_threadsafe(self._ring_peers, wanted)

    def _ring_peers(self, wanted: Moment) -> None:
        for peer in self._peers:
            peer.ring.remote(wanted)
