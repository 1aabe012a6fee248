"""RankWatch: notices ranks that died, hang or left their group, finds out whom to name, and keeps the others' leases."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from cluster.control.leases import Leases
from cluster.state.lifecycle import Lifecycle
from cluster.state.roster import Roster, Seat
from experts.background import watch_task
from experts.worker import remote
from experts.worker.deadlines import DEADLINES
from experts.worker.remote import Gone

log = logging.getLogger(__name__)


class RankWatch:
    """Lives in the supervisor's event loop. happened: notes an event (kind, text);
    end: the epoch can't go on, `life` knows why."""

    def __init__(
        self,
        life: Lifecycle,
        roster: Roster,
        log_dir: str,
        happened: Callable[[str, str], None],
        end: Callable[[], Awaitable[None]],
    ) -> None:
        self._life, self._roster, self._log_dir = life, roster, log_dir
        self._happened, self._end = happened, end
        self._leases = Leases(self._silent, lambda what: happened("lease", what), self.give_up, DEADLINES.hangs)
        self._tasks: list[asyncio.Task[None]] = []

    def keep(self, seat: Seat) -> None:
        """Renew the lease of a rank that starts."""
        self._leases.keep(seat)

    def watch(self, seat: Seat) -> None:
        """A rank is in the epoch: its end matters from now on."""
        name = f"watch of rank {seat.rank}"
        self._tasks.append(watch_task(name, self._watch(seat), self.give_up, returns=True))

    def stop(self) -> None:
        """Ranks that end from now on end on purpose."""
        self._leases.stop()
        for task in self._tasks:
            task.cancel()

    async def _watch(self, seat: Seat) -> None:
        """Wait on a rank for as long as it lives; Ray ends the call within milliseconds of its death."""
        while True:
            try:
                reason = await seat.port.ended()
                break
            except Gone:
                await self._lost(seat)
                return
            except Exception as error:  # one bad call says nothing of the rank
                log.exception("%s can't be waited for", seat.title)
                self._happened("watch", f"{seat.title} can't be waited for, and is asked again: {error}")
                await asyncio.sleep(DEADLINES.renew)
        if not reason or self._life.state in ("stopping", "degraded"):
            return
        if len(self._roster.seats) > 1:
            await asyncio.sleep(DEADLINES.culprit)  # a peer's death breaks the group before Ray reports it
        if self._life.state != "ready":
            return
        ranks = list(self._roster.seats)
        answers = await asyncio.gather(*map(self._answers, ranks))
        silent = [s for s, answered in zip(ranks, answers, strict=True) if not answered]
        if self._life.state != "ready":
            return
        if silent:  # its peers only know that they waited, and often on another that waited too
            await self._hung(silent[0])
            return
        self._life.broke(self._for_good(f"{seat.title} left the group: {reason}"))
        await self._end()

    async def _answers(self, seat: Seat) -> bool:
        """Whether a rank's process still reacts; a dead one is its watcher's business."""
        try:
            await asyncio.wait_for(seat.port.keep(), DEADLINES.verdict)
        except TimeoutError:
            return False
        except Exception as error:
            log.info("%s answered with %r", seat.title, error)
        return True

    async def _silent(self, seat: Seat) -> None:
        """A rank that serves and does not answer hangs; one that loads may be busy."""
        if self._life.state == "ready":
            await self._hung(seat)

    async def _hung(self, seat: Seat) -> None:
        """A rank that does not answer is given up, and ended as soon as it reacts: its group went on without it."""
        if not self._roster.sits(seat):
            return
        seat.state = "dead"
        self._life.died(self._for_good(f"{seat.title} does not answer any more"))
        log.error("%s", self._life.reason)
        remote.kill(seat.port)
        await self._end()

    async def _lost(self, seat: Seat) -> None:
        if not self._roster.sits(seat):
            return  # ended by us
        seat.state = "dead"
        self._life.died(self._for_good(f"{seat.title} died"))
        if self._life.state != "stopping":
            log.error("%s", self._life.reason)
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
