"""The Inference service: a thin face over Service."""

import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc

from router_svc.api.grpc.convert import (
    chat_call,
    chat_chunk,
    generate_call,
    generate_chunk,
    merge_choices,
    model_info,
)
from router_svc.api.grpc.errors import guarded, guarded_stream
from router_svc.api.service import Service
from router_svc.proto import tokenyard_pb2 as pb
from router_svc.proto import tokenyard_pb2_grpc as rpc


class InferenceServicer(rpc.InferenceServicer):
    """A client that goes away cancels its handler, which closes the service's generator and so the work.

    Streams await each write, so a slow reader's chunks stay in the engine's stream, which is held when it grows.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    @guarded
    async def Generate(self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext) -> pb.GenerateResponse:
        _name(request)
        async with aclosing(self._service.generate(generate_call(request, context.time_remaining()))) as chunks:
            parts = [chunk async for chunk in chunks]
        choices = merge_choices(parts, chat=False)
        return pb.GenerateResponse(request_id=request.request_id, choices=choices)

    @guarded_stream
    async def GenerateStream(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateChunk]:
        _name(request)
        async with aclosing(self._service.generate(generate_call(request, context.time_remaining()))) as chunks:
            async for chunk in chunks:
                yield generate_chunk(request.request_id, chunk)

    @guarded
    async def Chat(self, request: pb.ChatRequest, context: grpc.aio.ServicerContext) -> pb.ChatResponse:
        _name(request)
        async with aclosing(self._service.chat(chat_call(request, context.time_remaining()))) as chunks:
            parts = [chunk async for chunk in chunks]
        choices = merge_choices(parts, chat=True)
        return pb.ChatResponse(request_id=request.request_id, choices=choices)

    @guarded_stream
    async def ChatStream(
        self, request: pb.ChatRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ChatChunk]:
        _name(request)
        async with aclosing(self._service.chat(chat_call(request, context.time_remaining()))) as chunks:
            async for chunk in chunks:
                yield chat_chunk(request.request_id, chunk)

    @guarded
    async def Tokenize(self, request: pb.TokenizeRequest, context: grpc.aio.ServicerContext) -> pb.TokenizeResponse:
        special = request.add_special_tokens if request.HasField("add_special_tokens") else True
        ids = await self._service.tokenize(request.text, special)
        return pb.TokenizeResponse(token_ids=ids, max_model_len=self._service.limits.max_model_len)

    @guarded
    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: grpc.aio.ServicerContext
    ) -> pb.DetokenizeResponse:
        return pb.DetokenizeResponse(text=await self._service.detokenize(tuple(request.token_ids)))

    @guarded
    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: grpc.aio.ServicerContext) -> pb.ModelInfo:
        return model_info(self._service.info)


def _name(request: pb.GenerateRequest | pb.ChatRequest) -> None:
    """Give a request without an id one, so that its chunks and errors can name it."""
    if not request.request_id:
        request.request_id = f"req-{secrets.token_hex(12)}"
