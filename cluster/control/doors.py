"""Doors: the gRPC doors as the supervisor keeps them, opened again when they died."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from cluster.state.events import EventLog
from experts.address import Listen
from experts.background import watch_task
from experts.errors import UserError
from experts.worker.remote import Gone
from router_svc.ingress.door import Door
from router_svc.ingress.ingress import IngressOrder, SupervisorVerbs

log = logging.getLogger(__name__)
_PAUSE = 0.5  # s between attempts to open a door again


class Doors:
    """Lives in the supervisor's event loop.

    supervisor: gives its port
    notice: shows what is wrong with a door, empty when it is over
    """

    def __init__(
        self,
        listen: Listen,
        supervisor: Callable[[], SupervisorVerbs],
        notice: Callable[[str], Awaitable[None]],
        events: EventLog,
    ) -> None:
        self._listen, self._supervisor, self._notice, self._events = listen, supervisor, notice, events
        self._doors: list[Door] = []
        self._watchers: list[asyncio.Task[None]] = []

    def add(self, door: Door, order: IngressOrder, port: int) -> None:
        """Watch a door that listens on `port`."""
        self._doors.append(door)
        self._watchers.append(
            watch_task("watch of the gRPC door", self._watch(door, order, port), self._unwatched, True)
        )

    @property
    def named(self) -> dict[str, Door]:
        """The doors' ports by name."""
        return {f"gRPC door {number}": door for number, door in enumerate(self._doors)}

    async def pages(self) -> list[str]:
        """Metrics of the doors that answer."""
        pages = await asyncio.gather(*(door.metrics() for door in self._doors), return_exceptions=True)
        return [page for page in pages if not isinstance(page, BaseException)]

    def stop_watching(self) -> None:
        """Doors that end from now on end on purpose."""
        for watcher in self._watchers:
            watcher.cancel()

    async def _watch(self, door: Door, order: IngressOrder, port: int) -> None:
        """Open a door again that died: Ray starts a new process, which knows no port yet."""
        while True:
            try:
                await door.ended()
                return  # closed on purpose
            except Gone as error:
                log.error("the gRPC door died: %s", error)
            except Exception as error:  # neither closed nor dead
                log.exception("the gRPC door can't be watched")
                self._events.add(time.time(), "door", f"can't be watched, and is asked again: {error}")
                await asyncio.sleep(_PAUSE)
                continue
            self._events.add(time.time(), "door", "the gRPC door died and is started again")
            await self._notice("the gRPC door died and is started again")
            while not await self._reopened(door, order, port):
                await asyncio.sleep(_PAUSE)
            self._events.add(time.time(), "door", f"the gRPC door listens on port {port} again")
            await self._notice("")

    async def _unwatched(self, what: str) -> None:
        """The door serves on, and would not come back if it died."""
        self._events.add(time.time(), "door", what)
        await self._notice(f"{what}: a gRPC door that dies now is not started again")

    async def _reopened(self, door: Door, order: IngressOrder, port: int) -> bool:
        try:
            await door.start(order, self._supervisor(), replace(self._listen, port=port))
        except (Gone, UserError) as error:  # not up yet; or someone took the port meanwhile
            log.warning("the gRPC door is not back yet: %s", error)
            return False
        return True
