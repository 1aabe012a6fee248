"""The asyncio client."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Unpack

import grpc

from experts.dump import ProcessDump
from router_svc.client.requests import CHANNEL_OPTIONS, Retries, chat_request, generate_request
from router_svc.client.results import (
    CallError,
    ChatDelta,
    ChatResult,
    Delta,
    Result,
    chat_delta,
    chat_results,
    delta,
    process_dumps,
    results,
)
from router_svc.client.sync import as_dict
from router_svc.proto import tokenyard_pb2 as pb
from router_svc.proto import tokenyard_pb2_grpc as rpc
from router_svc.sampling_arguments import SamplingArguments


class AsyncClient:
    """As Client, for one event loop. Every call raises CallError."""

    def __init__(self, *targets: str, retries: Retries | None = None) -> None:
        self._targets = targets or ("127.0.0.1:50051",)
        self._channels = [grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS) for target in self._targets]
        self._retries = retries or Retries()
        self._at = 0

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            await channel.close()

    async def generate(
        self, prompt: str | Sequence[int], *, request_id: str | None = None, priority: int = 0,
        timeout: float | None = None, **sampling: Unpack[SamplingArguments],
    ) -> list[Result]:  # fmt: skip
        """Complete a prompt; all choices."""
        request = generate_request(prompt, request_id, priority, timeout, sampling)
        return results(await self._unary(lambda s: s.Generate, request))

    def generate_stream(
        self, prompt: str | Sequence[int], *, request_id: str | None = None, priority: int = 0,
        timeout: float | None = None, **sampling: Unpack[SamplingArguments],
    ) -> AsyncIterator[Delta]:  # fmt: skip
        """Complete a prompt as a stream; closing the iterator cancels the request."""
        request = generate_request(prompt, request_id, priority, timeout, sampling)
        return self._stream(lambda s: s.GenerateStream, request, delta)

    async def chat(
        self, messages: str | Sequence[Mapping[str, str | None]], *, enable_thinking: bool | None = None,
        template: Mapping[str, Any] | None = None, request_id: str | None = None, priority: int = 0,
        timeout: float | None = None, **sampling: Unpack[SamplingArguments],
    ) -> list[ChatResult]:  # fmt: skip
        """Answer messages; all choices."""
        request = chat_request(messages, enable_thinking, template, request_id, priority, timeout, sampling)
        return chat_results(await self._unary(lambda s: s.Chat, request))

    def chat_stream(
        self, messages: str | Sequence[Mapping[str, str | None]], *, enable_thinking: bool | None = None,
        template: Mapping[str, Any] | None = None, request_id: str | None = None, priority: int = 0,
        timeout: float | None = None, **sampling: Unpack[SamplingArguments],
    ) -> AsyncIterator[ChatDelta]:  # fmt: skip
        """Answer messages as a stream; closing the iterator cancels the request."""
        request = chat_request(messages, enable_thinking, template, request_id, priority, timeout, sampling)
        return self._stream(lambda s: s.ChatStream, request, chat_delta)

    async def tokenize(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text."""
        request = pb.TokenizeRequest(text=text, add_special_tokens=add_special_tokens)
        return list((await self._unary(lambda s: s.Tokenize, request)).token_ids)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Text of ids."""
        return str((await self._unary(lambda s: s.Detokenize, pb.DetokenizeRequest(token_ids=token_ids))).text)

    async def model_info(self) -> dict[str, Any]:
        """The served model."""
        return as_dict(await self._unary(lambda s: s.GetModelInfo, pb.GetModelInfoRequest()))

    async def status(self, events: bool = False) -> dict[str, Any]:
        """The cluster, as `tokenyard status --json` prints it; events: with the event log, oldest first."""
        found = as_dict(await self._unary(lambda s: s.GetStatus, pb.GetStatusRequest(events=events), rpc.AdminStub))
        if not events:
            del found["events"]
        return found

    async def rebalance(self, dry_run: bool = False) -> dict[str, Any]:
        """Plan now and move experts, unless `dry_run`: what RebalanceResponse tells."""
        request = pb.RebalanceRequest(dry_run=dry_run)
        return as_dict(await self._unary(lambda s: s.Rebalance, request, rpc.AdminStub))

    async def dump(self) -> list[ProcessDump]:
        """What every process of the cluster is doing."""
        return process_dumps(await self._unary(lambda s: s.Dump, pb.DumpRequest(), rpc.AdminStub))

    async def _unary(
        self, method: Callable[[Any], Any], request: Any, stub: Callable[[Any], Any] = rpc.InferenceStub
    ) -> Any:
        attempt = 1
        while True:
            try:
                return await method(stub(self._channels[self._at]))(request)
            except grpc.RpcError as error:
                await self._again(error, attempt)
                attempt += 1

    async def _stream(
        self, method: Callable[[Any], Any], request: Any, convert: Callable[[Any], Any]
    ) -> AsyncIterator[Any]:
        attempt, started = 1, False
        while True:
            call = method(rpc.InferenceStub(self._channels[self._at]))(request)
            try:
                async for chunk in call:
                    started = True
                    yield convert(chunk)
                return
            except grpc.RpcError as error:
                if started:
                    raise CallError.of(error) from None
                await self._again(error, attempt)
                attempt += 1
            finally:
                call.cancel()

    async def _again(self, error: grpc.RpcError, attempt: int) -> None:
        wait = self._retries.wait(error, attempt)
        if wait is None:
            raise CallError.of(error) from None
        self._at = (self._at + 1) % len(self._channels)
        await asyncio.sleep(wait)
