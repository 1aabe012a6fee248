"""The project's own grpc.aio server: inference, admin, health and reflection on one port."""

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from experts.address import Listen, joined, listeners
from experts.errors import UserError
from router_svc.api.admin import AdminBackend
from router_svc.api.grpc.admin import AdminServicer
from router_svc.api.grpc.errors import DecodeErrors
from router_svc.api.grpc.inference import InferenceServicer
from router_svc.api.limits import SERVING
from router_svc.api.service import Service
from router_svc.proto import tokenyard_pb2 as pb
from router_svc.proto import tokenyard_pb2_grpc as rpc

_MESSAGE_LIMIT = 16 << 20  # bytes, of a request; the longest prompt of 256 K ids takes 1 MB
_HANDSHAKE_MS = 20_000  # from a connection's start to its first frame
_IDLE_MS = 600_000  # without a call; clients connect again by themselves
_NAMES = tuple(pb.DESCRIPTOR.services_by_name[name].full_name for name in ("Inference", "Admin"))


class GrpcServer:
    """Owns the port. Started with `start`, drained and closed with `stop`, both in one event loop."""

    def __init__(self, service: Service, admin: AdminBackend, listen: Listen) -> None:
        self._listen = listen
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            interceptors=(DecodeErrors(),),
            options=(
                ("grpc.so_reuseport", 0),
                ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
                ("grpc.max_connection_idle_ms", _IDLE_MS),
                ("grpc.max_receive_message_length", _MESSAGE_LIMIT),
                ("grpc.max_send_message_length", -1),
            ),
        )
        rpc.add_InferenceServicer_to_server(InferenceServicer(service), self._server)
        rpc.add_AdminServicer_to_server(AdminServicer(admin), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*_NAMES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self.port = 0

    async def start(self) -> None:
        """Listen at all addresses of the host. Raises UserError, with the reason, where that can't be."""
        bound = listeners(self._listen, "--grpc-port")  # grpc gives no reasons
        places = [sock.getsockname() for sock in bound]
        for sock in bound:
            sock.close()
        for host, port, *_ in places:
            try:
                self.port = self._server.add_insecure_port(joined(host, port))
            except RuntimeError:
                raise UserError(f"port {port} in use", "a free one", f"--grpc-port on {self._listen.host}") from None
        await self._server.start()

    async def show_state(self, state: str) -> None:
        """Tell health checks whether requests are served."""
        serving = health_pb2.HealthCheckResponse.SERVING
        answer = serving if state in SERVING else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *_NAMES):
            await self._health.set(name, answer)

    async def stop(self, grace: float) -> None:
        """Refuse new calls, give running ones `grace` seconds, close."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)
