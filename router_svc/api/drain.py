"""The requests that run in one ingress, and how they are seen out when the server ends. Lives in an event loop."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from router_svc.api.engines import EventStream
from router_svc.request import Code, FailedEvent

_LOOK = 0.02  # s between looks at what still runs
_FAREWELL = 1.0  # s for those that were ended to pass that on


class OpenRequests:
    """closing: whether no more are taken."""

    def __init__(self) -> None:
        self.closing = False
        self._streams: set[EventStream] = set()

    @contextmanager
    def holding(self, stream: EventStream) -> Iterator[None]:
        """The request runs while the block does."""
        self._streams.add(stream)
        try:
            yield
        finally:
            self._streams.discard(stream)

    async def drain(self, grace: float) -> None:
        """Take no more; give those that run `grace` seconds, and end the rest with UNAVAILABLE."""
        self.closing = True
        await self._empty(grace)
        text = (
            f"the server is shutting down, and the request ran on for the {grace:g} s that it grants (--grace-period)"
        )
        for stream in tuple(self._streams):
            request = stream.request
            stream.fail(FailedEvent(request.request_id, request.attempt, Code.UNAVAILABLE, text))
        await self._empty(_FAREWELL)

    async def _empty(self, seconds: float) -> None:
        until = asyncio.get_running_loop().time() + seconds
        while self._streams and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(_LOOK)
