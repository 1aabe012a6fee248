"""HTTP on Ray Serve: a deployment that runs the same ASGI app over links."""

import asyncio
from typing import Any

from ray import serve
from starlette.types import ASGIApp, Receive, Scope, Send

from router_svc.api.http import build_app
from router_svc.ingress import Ingress, IngressOrder

_replica: list["HttpReplica"] = []  # the one replica of this process


class _Forward:
    """The app that Serve sees; the real one needs the event loop and is built with the first call."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            app = await _replica[0].app()
            await app(scope, receive, send)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


@serve.deployment(name="http", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=4096, graceful_shutdown_timeout_s=3)
@serve.ingress(_Forward())
class HttpReplica:
    """One replica of the HTTP face."""

    def __init__(self, order: IngressOrder, supervisor: Any, metrics_of: list[Any]) -> None:
        """metrics_of: other ingresses, whose metrics belong on the one page."""
        self._ingress = Ingress(order, supervisor)
        self._others = metrics_of
        self._app: ASGIApp | None = None
        self._building: asyncio.Lock | None = None
        _replica[:] = [self]

    async def app(self) -> ASGIApp:
        """The ASGI app, connected."""
        if self._building is None:
            self._building = asyncio.Lock()
        async with self._building:
            if self._app is None:
                service = await self._ingress.start()
                self._app = build_app(service, _OnePage(self._ingress, self._others))
        return self._app


class _OnePage:
    """AdminBackend whose metrics are the ranks'. The door's requests are counted by the door, shown by `metrics`."""

    def __init__(self, ingress: Ingress, others: list[Any]) -> None:
        self._admin = ingress.admin
        self._others = others
        self.status = ingress.admin.status
        self.placement = ingress.admin.placement

    async def metrics(self) -> str:
        return await self._admin.metrics()
