"""From Python arguments to protobuf requests, and when a call may be tried again."""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from router_svc.proto import tokenyard_pb2 as pb
from router_svc.sampling import PARAMETERS
from router_svc.sampling_arguments import SamplingArguments

_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # http_proxy and its like are for the web; a target is called where it is
)


@dataclass(frozen=True, slots=True)
class Retries:
    """Safe retries: of unary calls, and of streams before their first chunk. Seconds."""

    attempts: int = 4
    first_wait: float = 0.1
    longest_wait: float = 2.0

    def wait(self, error: grpc.RpcError, attempt: int) -> float | None:
        """How long to wait before attempt number `attempt + 1` (from 1), None = give up."""
        if attempt >= self.attempts or error.code() not in _AGAIN:
            return None
        hints = [v for k, v in (error.trailing_metadata() or ()) if k == "grpc-retry-pushback-ms"]
        hinted = float(hints[0]) / 1000 if hints else 0.0
        return min(max(self.first_wait * 2 ** (attempt - 1), hinted), self.longest_wait)


def generate_request(
    prompt: str | Sequence[int],
    request_id: str | None,
    priority: int,
    timeout: float | None,
    sampling: SamplingArguments,
) -> pb.GenerateRequest:
    """A completion of text or token ids."""
    request = pb.GenerateRequest(
        request_id=request_id or f"req-{secrets.token_hex(12)}", sampling=_sampling(sampling), priority=priority
    )
    if isinstance(prompt, str):
        request.text = prompt
    else:
        request.token_ids.ids.extend(prompt)
    if timeout is not None:
        request.timeout = timeout
    return request


def chat_request(
    messages: str | Sequence[Mapping[str, str | None]],
    enable_thinking: bool | None,
    template: Mapping[str, Any] | None,
    request_id: str | None,
    priority: int,
    timeout: float | None,
    sampling: SamplingArguments,
) -> pb.ChatRequest:
    """A chat; a plain string is one user message; a turn without content counts as an empty one."""
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    request = pb.ChatRequest(
        request_id=request_id or f"req-{secrets.token_hex(12)}",
        messages=[pb.ChatMessage(role=turn["role"], content=turn.get("content")) for turn in turns],
        sampling=_sampling(sampling),
        priority=priority,
        chat_template_kwargs=json.dumps(dict(template)) if template else "",
    )
    if enable_thinking is not None:
        request.enable_thinking = enable_thinking
    if timeout is not None:
        request.timeout = timeout
    return request


def _sampling(values: SamplingArguments) -> pb.Sampling:
    kinds = {p.name: p.kind for p in PARAMETERS}
    given: dict[str, Any] = {}
    for name, value in values.items():
        if name not in kinds:
            raise TypeError(f"unknown sampling parameter {name!r}, expected one of {', '.join(sorted(kinds))}")
        if value is not None:
            given[name] = [value] if kinds[name] == "strings" and isinstance(value, str) else value
    return pb.Sampling(**given)
