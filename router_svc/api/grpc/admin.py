"""The Admin service: what runs, and where the experts are. Changing it is refused by name."""

from collections.abc import AsyncIterator
from typing import NoReturn

import grpc

from router_svc.api.admin import AdminBackend
from router_svc.api.grpc.convert import dump_message, status_message
from router_svc.api.grpc.errors import guarded
from router_svc.proto import tokenyard_pb2 as pb
from router_svc.proto import tokenyard_pb2_grpc as rpc


class AdminServicer(rpc.AdminServicer):
    """GetStatus, GetPlacement, Rebalance and Dump; the rest of the contract answers UNIMPLEMENTED."""

    def __init__(self, backend: AdminBackend) -> None:
        self._backend = backend

    @guarded
    async def GetStatus(self, request: pb.GetStatusRequest, context: grpc.aio.ServicerContext) -> pb.Status:
        return status_message(await self._backend.status(request.events))

    @guarded
    async def GetPlacement(self, request: pb.GetPlacementRequest, context: grpc.aio.ServicerContext) -> pb.Placement:
        placement = await self._backend.placement()
        return pb.Placement(
            version=placement.version,
            layers=placement.layers,
            ranks=placement.ranks,
            slots_per_rank=placement.slots_per_rank,
            slot_expert=placement.slot_expert.ravel().tolist(),
        )

    async def WatchStatus(
        self, request: pb.WatchStatusRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.Status]:
        await _unavailable(context, "WatchStatus")
        yield pb.Status()

    @guarded
    async def Rebalance(self, request: pb.RebalanceRequest, context: grpc.aio.ServicerContext) -> pb.RebalanceResponse:
        return pb.RebalanceResponse(**await self._backend.rebalance(request.dry_run))

    @guarded
    async def Dump(self, request: pb.DumpRequest, context: grpc.aio.ServicerContext) -> pb.DumpResponse:
        return dump_message(await self._backend.dump())

    async def Drain(self, request: pb.DrainRequest, context: grpc.aio.ServicerContext) -> pb.DrainResponse:
        await _unavailable(context, "Drain")

    async def Scale(self, request: pb.ScaleRequest, context: grpc.aio.ServicerContext) -> pb.ScaleResponse:
        await _unavailable(context, "Scale")


async def _unavailable(context: grpc.aio.ServicerContext, name: str) -> NoReturn:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"Admin.{name} is not available in this version")
    raise AssertionError("abort raises")
