"""RankWatch: notices ranks that died, hang or left their group, finds out whom to name, and keeps the others' leases."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence

import ray
from ray.exceptions import RayActorError

from cluster.leases import Leases
from cluster.lifecycle import Lifecycle
from cluster.ranks import RankHandle
from experts.background import watch_task
from experts.lease import RENEW

log = logging.getLogger(__name__)
HANGS = 30.0  # s without an answer after which a rank that serves counts as hung
_VERDICT = 10.0  # s for a rank of a broken group to answer before it counts as hung and is ended
_CULPRIT_WAIT = 0.5  # s that a broken group waits for news of a death, to name it


class RankWatch:
    """Lives in the supervisor's event loop. ranks: of the epoch in use; happened: notes an event (kind, text);
    give_up: the epoch can't go on, `life` knows why."""

    def __init__(
        self,
        life: Lifecycle,
        ranks: Callable[[], Sequence[RankHandle]],
        log_dir: str,
        happened: Callable[[str, str], None],
        give_up: Callable[[], Awaitable[None]],
    ) -> None:
        self._life, self._ranks, self._log_dir = life, ranks, log_dir
        self._happened, self._give_up = happened, give_up
        self._leases = Leases(self._silent, lambda what: happened("lease", what), self._unwatched, HANGS)
        self._tasks: list[asyncio.Task[None]] = []

    def keep(self, handle: RankHandle) -> None:
        """Renew the lease of a rank that starts."""
        self._leases.keep(handle)

    def watch(self, handle: RankHandle) -> None:
        """A rank is in the epoch: its end matters from now on."""
        name = f"watch of rank {handle.seat.rank}"
        self._tasks.append(watch_task(name, self._watch(handle), self._unwatched, returns=True))

    def stop(self) -> None:
        """Ranks that end from now on end on purpose."""
        self._leases.stop()
        for task in self._tasks:
            task.cancel()

    async def _watch(self, handle: RankHandle) -> None:
        """Wait on a rank for as long as it lives; Ray ends the call within milliseconds of its death."""
        while True:
            try:
                reason = await handle.actor.ended.remote()
                break
            except RayActorError:
                await self._lost(handle)
                return
            except Exception as error:  # one bad call says nothing of the rank
                log.exception("%s can't be waited for", handle.title)
                self._happened("watch", f"{handle.title} can't be waited for, and is asked again: {error}")
                await asyncio.sleep(RENEW)
        if not reason or self._life.state in ("stopping", "degraded"):
            return
        await asyncio.sleep(_CULPRIT_WAIT)  # a peer's death breaks the group before Ray reports it
        if self._life.state != "ready":
            return
        ranks = self._ranks()
        answers = await asyncio.gather(*map(self._answers, ranks))
        silent = [h for h, answered in zip(ranks, answers, strict=True) if not answered]
        if self._life.state != "ready":
            return
        if silent:  # its peers only know that they waited, and often on another that waited too
            await self._hung(silent[0])
            return
        self._life.broke(self._for_good(f"{handle.title} left the group: {reason}"))
        await self._give_up()

    async def _answers(self, handle: RankHandle) -> bool:
        """Whether a rank's process still reacts; a dead one is its watcher's business."""
        try:
            await asyncio.wait_for(handle.actor.keep.remote(), _VERDICT)
        except TimeoutError:
            return False
        except Exception as error:
            log.info("%s answered with %r", handle.title, error)
        return True

    async def _silent(self, handle: RankHandle) -> None:
        """A rank that serves and does not answer hangs; one that loads may be busy."""
        if self._life.state == "ready":
            await self._hung(handle)

    async def _hung(self, handle: RankHandle) -> None:
        """A rank that does not answer is given up, and ended as soon as it reacts: its group went on without it."""
        if not self._sits(handle):
            return
        self._life.died(handle.seat.rank, self._for_good(f"{handle.title} does not answer any more"))
        log.error("%s", self._life.reason)
        ray.kill(handle.actor)
        await self._give_up()

    async def _lost(self, handle: RankHandle) -> None:
        if not self._sits(handle):
            return  # ended by us
        self._life.died(handle.seat.rank, self._for_good(f"{handle.title} died"))
        if self._life.state != "stopping":
            log.error("%s", self._life.reason)
            await self._give_up()

    async def _unwatched(self, what: str) -> None:
        """Nobody would notice a rank's end any more, or keep it alive: better to end while it can be said why."""
        if self._life.state not in ("stopping", "degraded"):
            self._life.broke(self._for_good(what))
            await self._give_up()

    def _sits(self, handle: RankHandle) -> bool:
        """Whether the rank is in the epoch, and not known to be dead."""
        return handle in self._ranks() and self._life.seat_states[handle.seat.rank] != "dead"

    def _for_good(self, what: str) -> str:
        """The reason of a cluster that serves nobody any more, and what its operator does about it."""
        return f"{what}; stop this server and start it again (tokenyard serve); logs are in {self._log_dir}"


async def end_of(handle: RankHandle) -> None:
    """Return when a rank's step loop has ended, or its process."""
    with contextlib.suppress(RayActorError):
        await handle.actor.ended.remote()
