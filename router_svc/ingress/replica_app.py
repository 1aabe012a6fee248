"""The ASGI app of one Serve replica's process. Serve pickles a deployment's class by value, so state must live apart."""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from experts import ray_private
from router_svc.api.openai.app import build_app
from router_svc.ingress.ingress import Ingress, IngressOrder, SupervisorVerbs


class ReplicaApp:
    """What Serve calls. The real app needs the event loop and the links, and is built with the first request."""

    def __init__(self) -> None:
        self._source: tuple[IngressOrder, SupervisorVerbs] | None = None
        self._app: ASGIApp | None = None
        self._building: asyncio.Lock | None = None

    def configure(self, order: IngressOrder, supervisor: SupervisorVerbs) -> None:
        """What to serve; called once, when the replica starts."""
        ray_private.keep_inner_port_to_node()
        self._source = (order, supervisor)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        app = self._app or await self._build()
        await app(scope, receive, send)

    async def _build(self) -> ASGIApp:
        assert self._source is not None, "a replica is configured before its first request"
        if self._building is None:
            self._building = asyncio.Lock()
        async with self._building:
            if self._app is None:
                order = self._source[0]
                ingress = Ingress(*self._source)
                service = await ingress.start()
                self._app = build_app(service, ingress.admin, order.origins, strict=order.strict_fields)
            return self._app


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


APP = ReplicaApp()


def app() -> ReplicaApp:
    """This process's app."""
    return APP
