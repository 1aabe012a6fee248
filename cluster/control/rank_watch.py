"""RankWatch: notices ranks that died, hang or left their group, finds out whom to name, and keeps the others' leases."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from cluster.control.leases import Leases
from cluster.control.processes import end_process_of
from cluster.state.lifecycle import Lifecycle
from cluster.state.roster import Roster, Seat
from experts.background import watch_task
from experts.worker.deadlines import DEADLINES
from experts.worker.remote import Gone

T = TypeVar("T")
log = logging.getLogger(__name__)
_HOUR = 3600.0
_MOST_BREAKS = 5  # of the group in an hour, without a death


class RankWatch:
    """Lives in the supervisor's event loop.

    happened: notes an event (kind, text)
    end: the ranks can't go on, `life` knows why
    lost: a rank is lost without which the others may go on, or their group broke though none is (None), with the reason
    """

    def __init__(
        self,
        life: Lifecycle,
        roster: Roster,
        log_dir: str,
        happened: Callable[[str, str], None],
        end: Callable[[], Awaitable[None]],
        lost: Callable[[Seat | None, str], Awaitable[None]],
    ) -> None:
        self._life, self._roster, self._log_dir = life, roster, log_dir
        self._happened, self._end, self._others_go_on = happened, end, lost
        self._leases = Leases(self._silent, lambda what: happened("lease", what), self.give_up, DEADLINES.hangs)
        self._tasks: list[asyncio.Task[None]] = []
        self._watched: set[Seat] = set()
        self._breaks: list[float] = []  # of the group, without a death

    def keep(self, seat: Seat) -> None:
        """Renew the lease of a rank that starts."""
        self._leases.keep(seat)

    def watch(self, seat: Seat) -> None:
        """A rank is in an epoch: its end matters from now on, and so does the epoch's; call it for each epoch."""
        self._tasks = [task for task in self._tasks if not task.done()]
        works = [(f"epoch of rank {seat.rank}", self._watch_epoch(seat))]
        if seat not in self._watched:
            self._watched.add(seat)
            works.append((f"watch of rank {seat.rank}", self._watch(seat)))
        self._tasks += [watch_task(name, work, self.give_up, returns=True) for name, work in works]

    def stop(self) -> None:
        """Ranks that end from now on end on purpose."""
        self._leases.stop()
        for task in self._tasks:
            task.cancel()

    async def _watch(self, seat: Seat) -> None:
        """Wait on a rank for as long as it lives; Ray ends the call within milliseconds of its death."""
        try:
            reason = await self._patiently(seat, seat.port.ended)
        except Gone:
            self._watched.discard(seat)
            await self._lost(seat)
            return
        await self._ended(seat, reason)

    async def _watch_epoch(self, seat: Seat) -> None:
        """Wait until the epoch breaks for a rank. Its death, and that of the rank that broke it, is others' business."""
        try:
            broke = await self._patiently(seat, seat.port.broken)
        except Gone:
            return
        for other in list(self._roster.seats):
            if broke.died == (other.rank, other.member.incarnation):
                end_process_of(other)  # it is dying, and Ray says so when its memory is freed
                await self._lost(other)
                return
        await self._ended(seat, broke.reason)

    async def _patiently(self, seat: Seat, ask: Callable[[], Awaitable[T]]) -> T:
        """What a rank says in the end. Raises Gone."""
        while True:
            try:
                return await ask()
            except Gone:
                raise
            except Exception as error:  # one bad call says nothing of the rank
                log.exception("%s can't be waited for", seat.title)
                self._happened("watch", f"{seat.title} can't be waited for, and is asked again: {error}")
                await asyncio.sleep(DEADLINES.renew)

    async def _ended(self, seat: Seat, reason: str) -> None:
        """A rank's steps ended or broke, though nobody is known to have died: find out whom to name."""
        if not reason or self._life.state != "ready":
            return
        epoch = self._life.epoch
        if len(self._roster.seats) > 1:
            await asyncio.sleep(DEADLINES.culprit)  # a peer's death breaks the group before Ray reports it
        if self._life.state != "ready" or self._life.epoch != epoch:
            return
        ranks = list(self._roster.seats)
        answers = await asyncio.gather(*map(self._answers, ranks))
        for one, answer in zip(ranks, answers, strict=True):
            if answer == "gone":
                await self._lost(one)
        silent = [one for one, answer in zip(ranks, answers, strict=True) if answer == "silent"]
        if self._life.state != "ready" or self._life.epoch != epoch:
            return
        if silent:  # its peers only know that they waited, and often on another that waited too
            await self.hung(silent[0])
            return
        if self._life.state != "ready" or self._life.epoch != epoch:
            return
        why = f"{seat.title} left the group: {reason}"
        if len(ranks) > 1 and self._broke_seldom() and self._life.recovers(why):
            await self._others_go_on(None, why)
            return
        self._life.broke(self._for_good(why))
        await self._end()

    def _broke_seldom(self) -> bool:
        """Whether the ranks may meet again, though nobody knows what broke their group."""
        now = time.monotonic()
        self._breaks = [at for at in self._breaks if at > now - _HOUR] + [now]
        return len(self._breaks) <= _MOST_BREAKS

    async def _answers(self, seat: Seat) -> str:
        """Whether a rank's process still reacts: `there`, `silent` or `gone`."""
        try:
            await asyncio.wait_for(seat.port.keep(), DEADLINES.verdict)
        except TimeoutError:
            return "silent"
        except Gone:
            return "gone"
        except Exception as error:
            log.info("%s answered with %r", seat.title, error)
        return "there"

    async def _silent(self, seat: Seat) -> None:
        """A rank that serves and does not answer hangs; one that loads may be busy."""
        if self._life.state == "ready":
            await self.hung(seat)

    async def hung(self, seat: Seat) -> None:
        """A rank that does not answer is given up and its process ended: its group goes on without it."""
        if not self._roster.sits(seat):
            return
        end_process_of(seat)
        await self._dead(seat, f"{seat.title} does not answer any more")

    async def _lost(self, seat: Seat) -> None:
        if self._roster.sits(seat):  # else it was ended by us
            await self._dead(seat, f"{seat.title} died")

    async def _dead(self, seat: Seat, why: str) -> None:
        seat.state = "dead"
        if self._life.state in ("stopping", "degraded"):
            return
        log.error("%s", why)
        if seat.member.role == "expert" and self._life.recovers(why):
            await self._others_go_on(seat, why)
            return
        self._life.died(self._for_good(why))
        await self._end()

    async def give_up(self, what: str) -> None:
        """The ranks can't serve any more, though none is known to have died."""
        if self._life.state not in ("stopping", "degraded"):
            self._life.broke(self._for_good(what))
            await self._end()

    def _for_good(self, what: str) -> str:
        """The reason of a cluster that serves nobody any more, and what its operator does about it."""
        logs = f"; logs are in {self._log_dir}" if self._log_dir else ""
        return f"{what}; stop this server and start it again (tokenyard serve){logs}"


async def end_of(seat: Seat) -> None:
    """Return when a rank's step loop has ended, or its process."""
    with contextlib.suppress(Gone):
        await seat.port.ended()
