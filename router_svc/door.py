"""The gRPC door: a Ray actor with the project's own grpc.aio server."""

from typing import Any

from prometheus_client import generate_latest

from experts.errors import UserError
from router_svc.api.grpc_server import GrpcServer
from router_svc.ingress import Ingress, IngressOrder


class Door:
    """One door a node, on a fixed port."""

    def __init__(self, order: IngressOrder, supervisor: Any, host: str, port: int) -> None:
        self._ingress = Ingress(order, supervisor)
        self._host, self._port = host, port
        self._server: GrpcServer | None = None
        self._state = "starting"

    async def start(self) -> int:
        """Connect and listen; the port. Raises UserError when it is taken."""
        service = await self._ingress.start(self._show)
        server = GrpcServer(service, self._ingress.admin, self._host, self._port)
        await server.start()
        self._server = server
        await server.show_state(self._state)
        return server.port

    async def metrics(self) -> str:
        """Prometheus text of this ingress."""
        if self._ingress.service is None:
            raise UserError("a door that has not started", "a started one", "door")
        return generate_latest(self._ingress.service.metrics.registry).decode()

    async def stop(self, grace: float) -> None:
        """Drain and close."""
        if self._server is not None:
            await self._server.stop(grace)

    async def _show(self, state: str) -> None:
        self._state = state
        if self._server is not None:
            await self._server.show_state(state)
