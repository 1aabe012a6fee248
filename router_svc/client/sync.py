"""The synchronous client."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Unpack

import grpc
from google.protobuf.json_format import MessageToDict

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
from router_svc.proto import tokenyard_pb2 as pb
from router_svc.proto import tokenyard_pb2_grpc as rpc
from router_svc.sampling_arguments import SamplingArguments


class Client:
    """Talks to one server, or to the first of several targets that answers. Thread-safe.

    Sampling parameters are keyword arguments, those of SamplingArguments.
    Every call raises CallError.
    """

    def __init__(self, *targets: str, retries: Retries | None = None) -> None:
        self._targets = targets or ("127.0.0.1:50051",)
        self._channels = [grpc.insecure_channel(target, options=CHANNEL_OPTIONS) for target in self._targets]
        self._retries = retries or Retries()
        self._at = 0

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            channel.close()

    def generate(
        self, prompt: str | Sequence[int], *, request_id: str | None = None, priority: int = 0,
        timeout: float | None = None, **sampling: Unpack[SamplingArguments],
    ) -> list[Result]:  # fmt: skip
        """Complete a prompt; all choices."""
        request = generate_request(prompt, request_id, priority, timeout, sampling)
        return results(self._unary(lambda s: s.Generate, request))

    def generate_stream(
        self, prompt: str | Sequence[int], *, request_id: str | None = None, priority: int = 0,
        timeout: float | None = None, **sampling: Unpack[SamplingArguments],
    ) -> Iterator[Delta]:  # fmt: skip
        """Complete a prompt as a stream; closing the iterator cancels the request."""
        request = generate_request(prompt, request_id, priority, timeout, sampling)
        return self._stream(lambda s: s.GenerateStream, request, delta)

    def chat(
        self, messages: str | Sequence[Mapping[str, str | None]], *, enable_thinking: bool | None = None,
        template: Mapping[str, Any] | None = None, request_id: str | None = None, priority: int = 0,
        timeout: float | None = None, **sampling: Unpack[SamplingArguments],
    ) -> list[ChatResult]:  # fmt: skip
        """Answer messages; all choices."""
        request = chat_request(messages, enable_thinking, template, request_id, priority, timeout, sampling)
        return chat_results(self._unary(lambda s: s.Chat, request))

    def chat_stream(
        self, messages: str | Sequence[Mapping[str, str | None]], *, enable_thinking: bool | None = None,
        template: Mapping[str, Any] | None = None, request_id: str | None = None, priority: int = 0,
        timeout: float | None = None, **sampling: Unpack[SamplingArguments],
    ) -> Iterator[ChatDelta]:  # fmt: skip
        """Answer messages as a stream; closing the iterator cancels the request."""
        request = chat_request(messages, enable_thinking, template, request_id, priority, timeout, sampling)
        return self._stream(lambda s: s.ChatStream, request, chat_delta)

    def tokenize(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text."""
        request = pb.TokenizeRequest(text=text, add_special_tokens=add_special_tokens)
        return list(self._unary(lambda s: s.Tokenize, request).token_ids)

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Text of ids."""
        return str(self._unary(lambda s: s.Detokenize, pb.DetokenizeRequest(token_ids=token_ids)).text)

    def model_info(self) -> dict[str, Any]:
        """The served model."""
        return as_dict(self._unary(lambda s: s.GetModelInfo, pb.GetModelInfoRequest()))

    def status(self, events: bool = False) -> dict[str, Any]:
        """The cluster, as `tokenyard status --json` prints it; events: with the event log, oldest first."""
        found = as_dict(self._unary(lambda s: s.GetStatus, pb.GetStatusRequest(events=events), rpc.AdminStub))
        if not events:
            del found["events"]
        return found

    def rebalance(self, dry_run: bool = False) -> dict[str, Any]:
        """Plan now and move experts, unless `dry_run`: what RebalanceResponse tells."""
        request = pb.RebalanceRequest(dry_run=dry_run)
        return as_dict(self._unary(lambda s: s.Rebalance, request, rpc.AdminStub))

    def dump(self) -> list[ProcessDump]:
        """What every process of the cluster is doing."""
        return process_dumps(self._unary(lambda s: s.Dump, pb.DumpRequest(), rpc.AdminStub))

    def placement(self) -> pb.Placement:
        """Which expert is in which slot."""
        return self._unary(lambda s: s.GetPlacement, pb.GetPlacementRequest(), rpc.AdminStub)

    def _unary(self, method: Callable[[Any], Any], request: Any, stub: Callable[[Any], Any] = rpc.InferenceStub) -> Any:
        attempt = 1
        while True:
            try:
                return method(stub(self._channels[self._at]))(request)
            except grpc.RpcError as error:
                self._again(error, attempt)
                attempt += 1

    def _stream(self, method: Callable[[Any], Any], request: Any, convert: Callable[[Any], Any]) -> Iterator[Any]:
        attempt, started = 1, False
        while True:
            call = method(rpc.InferenceStub(self._channels[self._at]))(request)
            try:
                for chunk in call:
                    started = True
                    yield convert(chunk)
                return
            except grpc.RpcError as error:
                if started:
                    raise CallError.of(error) from None
                self._again(error, attempt)
                attempt += 1
            finally:
                call.cancel()

    def _again(self, error: grpc.RpcError, attempt: int) -> None:
        """Wait for another attempt, at the next target; raises CallError when there is none."""
        wait = self._retries.wait(error, attempt)
        if wait is None:
            raise CallError.of(error) from None
        self._at = (self._at + 1) % len(self._channels)
        time.sleep(wait)


def as_dict(message: Any) -> dict[str, Any]:
    """A message as `status --json` shows it."""
    values: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _numbers(values)


def _numbers(value: Any) -> Any:
    """JSON's 64-bit integers come as text; give them back as numbers."""
    if isinstance(value, dict):
        return {k: int(v) if k in _WIDE and isinstance(v, str) else _numbers(v) for k, v in value.items()}
    return [_numbers(v) for v in value] if isinstance(value, list) else value


_WIDE = {
    field.name
    for message in pb.DESCRIPTOR.message_types_by_name.values()
    for field in message.fields
    if field.cpp_type == field.CPPTYPE_INT64
}
