"""HTTP in one process: an ASGI app under uvicorn, in an event loop that others use too. Knows nothing of the app.

A connection without a request is closed after REQUEST_SECONDS, one whose next request does not come after KEEP_ALIVE.
Without file descriptors the server says so once a second, closes connections that wait for their next request, and takes
new ones again a second after there are some.
"""

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from cluster.serve.request_ids import RequestIds
from experts.address import Listen, listeners
from experts.background import watch_task

log = logging.getLogger(__name__)
REQUEST_SECONDS = 20.0  # s for a request's head, from the connection's start or the head's first byte
KEEP_ALIVE = 90  # s from an answer to the next request: longer than load balancers keep their connections (60 to 75)
_LAST_BYTES = 1  # s for answers that are complete to reach their clients
_AT_ONCE = 64  # connections that asyncio takes in one go; each one that it can't take is an error in the log
_WAITING = 1024  # connections that the system keeps until they are taken
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class HttpServer:
    """Owns the port. `start` and `stop` in one event loop; ended: called when it ended though nobody stopped it."""

    def __init__(
        self, app: ASGIApp, listen: Listen, request_seconds: float = REQUEST_SECONDS, keep_alive: int = KEEP_ALIVE
    ) -> None:
        self._listen = listen
        self._protocol: Any = _patient(request_seconds)
        config = uvicorn.Config(
            RequestIds(app), http=self._protocol, log_config=None, log_level="warning", lifespan="off",
            access_log=False, timeout_graceful_shutdown=_LAST_BYTES, backlog=_AT_ONCE, timeout_keep_alive=keep_alive,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._task: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self, ended: Callable[[str], None]) -> None:
        """Listen. Raises UserError where that can't be."""
        sockets = listeners(self._listen, "--http-port")
        self.port = sockets[0].getsockname()[1]
        asyncio.get_running_loop().set_exception_handler(_Exhaustion(self._close_idle).handle)
        self._task = watch_task("HTTP server", self._serve(sockets), ended, returns=True)
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.01)
        if not self._server.started:
            raise RuntimeError("the HTTP server ended while it started; the log says why")
        for sock in sockets:
            sock.listen(_WAITING)

    async def stop(self) -> None:
        """Close the port, and connections once their answer is out."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task

    def _close_idle(self) -> None:
        """Close connections that had an answer and sent no request since; a client opens another when it needs it."""
        connections: list[Any] = list(self._server.server_state.connections)
        for connection in connections:
            if isinstance(connection, self._protocol) and connection.cycle is not None:
                connection.late()

    async def _serve(self, sockets: list[socket.socket]) -> None:
        await self._server._serve(sockets)  # not `serve`, which would take over the process's signals


class _Exhaustion:
    """An event loop's exception handler: connections that could not be taken are one line a second, not one each.

    relieve: called then, too."""

    def __init__(self, relieve: Callable[[], None]) -> None:
        self._relieve = relieve
        self._said = float("-inf")

    def handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _EXHAUSTED:
            loop.default_exception_handler(context)
        elif time.monotonic() - self._said >= 1:
            self._said = time.monotonic()
            log.warning("no new connections for now: %s", error.strerror)
            self._relieve()


def _patient(seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol, which has a limit only between an answer and the next byte, with one for a request's head."""

    class Patient(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        limit: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.arm()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not self.waits():
                self.disarm()
            elif self.limit is None:
                self.arm()

        def connection_lost(self, error: Exception | None) -> None:
            self.disarm()
            super().connection_lost(error)

        def waits(self) -> bool:
            """Whether no request is being answered."""
            return self.cycle is None or bool(self.cycle.response_complete)

        def arm(self) -> None:
            self.limit = asyncio.get_running_loop().call_later(seconds, self.late)

        def disarm(self) -> None:
            if self.limit is not None:
                self.limit.cancel()
                self.limit = None

        def late(self) -> None:
            if self.waits():
                self.transport.close()

    return Patient
