"""Doors: the gRPC doors as the supervisor keeps them, opened again when they died."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from cluster.events import EventLog
from experts.background import watch_task
from experts.errors import UserError
from router_svc.ingress import IngressOrder

log = logging.getLogger(__name__)
_PAUSE = 0.5  # s between attempts to open a door again
_ANSWER = 2.0  # s for a door to answer


class Doors:
    """Lives in the supervisor's event loop. notice: tells people what is wrong with a door, empty when it is over."""

    def __init__(self, host: str, notice: Callable[[str], Awaitable[None]], events: EventLog) -> None:
        self._host, self._notice, self._events = host, notice, events
        self._doors: list[Any] = []
        self._watchers: list[asyncio.Task[None]] = []

    def add(self, door: Any, order: IngressOrder, port: int) -> None:
        """Watch a door that listens on `port`."""
        self._doors.append(door)
        self._watchers.append(
            watch_task("watch of the gRPC door", self._watch(door, order, port), self._unwatched, True)
        )

    @property
    def named(self) -> dict[str, Any]:
        """The doors' actors by name."""
        return {f"gRPC door {number}": door for number, door in enumerate(self._doors)}

    async def pages(self) -> list[str]:
        """Metrics of the doors that answer."""
        asked = (asyncio.wait_for(door.metrics.remote(), _ANSWER) for door in self._doors)
        pages = await asyncio.gather(*asked, return_exceptions=True)
        return [page for page in pages if not isinstance(page, BaseException)]

    def stop_watching(self) -> None:
        """Doors that end from now on end on purpose."""
        for watcher in self._watchers:
            watcher.cancel()

    async def _watch(self, door: Any, order: IngressOrder, port: int) -> None:
        """Open a door again that died: Ray starts a new process, which knows no port yet."""
        while True:
            try:
                await door.ended.remote()
                return  # closed on purpose
            except RayActorError as error:
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

    async def _reopened(self, door: Any, order: IngressOrder, port: int) -> bool:
        me = ray.get_runtime_context().current_actor
        try:
            await door.start.remote(order, me, self._host, port)
        except (RayError, UserError) as error:  # not up yet; or someone took the port meanwhile
            log.warning("the gRPC door is not back yet: %s", error)
            return False
        return True
