"""Ranks of this process that can die: from `kill` on their calls end as those of a process that is gone."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

from experts.background import join_task
from experts.worker import remote
from experts.worker.host import WorkerHost
from experts.worker.worker import WorkerOrder


class Mortals:
    """Spawns ranks, for a cell, and kills them. on_call: gets rank and verb of every call, before it is made."""

    def __init__(self) -> None:
        self.on_call: Callable[[int, str], object] = lambda rank, verb: None
        self.hosts: dict[int, WorkerHost] = {}  # the newest of each rank
        self._ends: dict[int, asyncio.Event] = {}

    def spawn(self, order: WorkerOrder) -> WorkerHost:
        """A rank, to be given to the cell."""
        host, end = WorkerHost(order), asyncio.Event()
        self.hosts[order.seat.rank], self._ends[order.seat.rank] = host, end

        def send(verb: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Awaitable[Any]:
            self.on_call(order.seat.rank, verb)
            return _while_alive(join_task(verb, getattr(host, verb)(*arguments, **named)), end)

        return cast(WorkerHost, remote._Port(WorkerHost, send, (remote.here, (host,))))

    async def kill(self, rank: int) -> None:
        """End a rank: its connections are cut, and nothing answers any more."""
        self._ends[rank].set()
        self.hosts[rank].kill()


def _while_alive(call: "asyncio.Task[Any]", end: asyncio.Event) -> "asyncio.Task[Any]":
    async def wait() -> Any:
        ended = asyncio.ensure_future(end.wait())
        try:
            await asyncio.wait({call, ended}, return_when=asyncio.FIRST_COMPLETED)
            if end.is_set():
                raise remote.Gone("killed")
            return call.result()
        finally:
            ended.cancel()
            call.cancel()

    return join_task("call", wait())
