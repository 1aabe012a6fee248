"""The gRPC door: a Ray actor with the project's own grpc.aio server."""

import asyncio

from experts.address import Listen
from experts.dump import ProcessDump, dump_here
from experts.errors import UserError
from router_svc.api.grpc.server import GrpcServer
from router_svc.ingress.ingress import Ingress, IngressOrder, SupervisorVerbs


class Door:
    """One door a node, on a fixed port. Its constructor takes nothing, so that Ray can start a dead one again."""

    def __init__(self) -> None:
        self._ingress: Ingress | None = None
        self._server: GrpcServer | None = None
        self._state = "starting"
        self._closed = asyncio.Event()

    async def start(self, order: IngressOrder, supervisor: SupervisorVerbs, listen: Listen) -> int:
        """Connect and listen; the port. Raises UserError when it is taken."""
        ingress = self._ingress or Ingress(order, supervisor)
        service = ingress.service or await ingress.start(self._show)
        self._ingress = ingress
        server = GrpcServer(service, ingress.admin, listen)
        await server.start()
        self._server = server
        await server.show_state(self._state)
        return server.port

    async def metrics(self) -> str:
        """Prometheus text of this ingress."""
        if self._ingress is None or self._ingress.service is None or self._server is None:
            raise UserError("a door that has not started", "a started one", "door")
        return self._ingress.service.metrics.page(f"grpc {self._server.port}")

    async def dump(self, name: str) -> ProcessDump:
        """What this process is doing; `name` is shown."""
        return dump_here(name)

    async def ended(self) -> None:
        """Waits until the door was closed on purpose; Ray ends the call when its process dies."""
        await self._closed.wait()

    async def stop(self, grace: float) -> None:
        """Drain and close."""
        self._closed.set()
        if self._server is not None:
            await self._server.stop(grace)

    async def _show(self, state: str) -> None:
        self._state = state
        if self._server is not None:
            await self._server.show_state(state)
