"""Doors: the gRPC doors as the supervisor keeps them, opened again when they died."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import ray
from ray.exceptions import RayActorError

from experts.errors import UserError
from router_svc.ingress import IngressOrder

log = logging.getLogger(__name__)
_PAUSE = 0.5  # s between attempts to open a door again
_ANSWER = 2.0  # s for a door to answer


class Doors:
    """Lives in the supervisor's event loop. notice: tells people what is wrong with a door, empty when it is over."""

    def __init__(self, host: str, notice: Callable[[str], Awaitable[None]]) -> None:
        self._host, self._notice = host, notice
        self._doors: list[Any] = []
        self._watchers: list[asyncio.Task[None]] = []

    def add(self, door: Any, order: IngressOrder, port: int) -> None:
        """Watch a door that listens on `port`."""
        self._doors.append(door)
        self._watchers.append(asyncio.create_task(self._watch(door, order, port)))

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
        """Open a door again that died: Ray starts its process anew, which then knows no port yet."""
        while True:
            try:
                await door.ended.remote()
                return  # closed on purpose
            except RayActorError as error:
                log.error("the gRPC door died: %s", error)
            await self._notice("the gRPC door died and is started again")
            while not await self._reopened(door, order, port):
                await asyncio.sleep(_PAUSE)
            await self._notice("")

    async def _reopened(self, door: Any, order: IngressOrder, port: int) -> bool:
        me = ray.get_runtime_context().current_actor
        try:
            await door.start.remote(order, me, self._host, port)
        except (RayActorError, UserError) as error:  # not up yet; or someone took the port meanwhile
            log.warning("the gRPC door is not back yet: %s", error)
            return False
        return True
