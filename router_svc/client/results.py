"""What the client gives back, as plain dataclasses, and the one error it raises."""

from dataclasses import dataclass, field
from typing import Any

import grpc

from experts.dump import ProcessDump, StepMoment, ThreadDump
from router_svc.proto import tokenyard_pb2 as pb


class CallError(Exception):
    """A call that failed.

    code: gRPC's name, such as INVALID_ARGUMENT
    retry_after: in seconds, where the server hints
    reason: a word for programs, where the server has one, such as context_length_exceeded
    """

    def __init__(self, code: str, message: str, retry_after: float | None = None, reason: str | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.reason = reason

    @classmethod
    def of(cls, error: grpc.RpcError) -> "CallError":
        """From grpc's own error."""
        trailers = dict(error.trailing_metadata() or ())
        hint = trailers.get("grpc-retry-pushback-ms")
        retry_after = None if hint is None else float(hint) / 1000
        return cls(error.code().name, error.details() or "", retry_after, trailers.get("error-reason"))


@dataclass(frozen=True, slots=True)
class Delta:
    """New output of one choice of a completion."""

    choice: int
    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    usage: dict[str, int] | None
    message: Any = field(repr=False, compare=False, default=None)  # the protobuf message, with logprobs and timings


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """New output of one choice of a chat."""

    choice: int
    index: int
    content: str
    reasoning: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    usage: dict[str, int] | None
    message: Any = field(repr=False, compare=False, default=None)


@dataclass(frozen=True, slots=True)
class Result:
    """One whole choice of a completion."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    usage: dict[str, int]
    message: Any = field(repr=False, compare=False, default=None)


@dataclass(frozen=True, slots=True)
class ChatResult:
    """One whole choice of a chat."""

    content: str
    reasoning: str
    token_ids: tuple[int, ...]
    finish_reason: str
    usage: dict[str, int]
    message: Any = field(repr=False, compare=False, default=None)


def usage_of(message: Any) -> dict[str, int]:
    """Token counts of a choice's last chunk."""
    u = message.usage
    return {
        "prompt_tokens": u.prompt_tokens,
        "completion_tokens": u.completion_tokens,
        "cached_tokens": u.cached_tokens,
    }


def process_dumps(response: pb.DumpResponse) -> list[ProcessDump]:
    """The processes of a dump."""
    return [
        ProcessDump(p.name, p.pid, p.trouble, _moment(p), tuple(map(_thread, p.threads)), tuple(p.tasks))
        for p in response.processes
    ]


def _moment(process: pb.ProcessDump) -> StepMoment | None:
    m = process.moment
    held = process.HasField("moment")
    return StepMoment(m.epoch, m.step, m.layer, m.phase, m.seconds, tuple(m.peers)) if held else None


def _thread(thread: pb.ThreadDump) -> ThreadDump:
    return ThreadDump(thread.name, tuple(thread.frames))


def delta(chunk: pb.GenerateChunk) -> Delta:
    """A stream's chunk."""
    usage = usage_of(chunk) if chunk.HasField("usage") else None
    ids = tuple(chunk.token_ids)
    return Delta(chunk.choice, chunk.index, chunk.text, ids, chunk.finish_reason or None, usage, chunk)


def chat_delta(chunk: pb.ChatChunk) -> ChatDelta:
    """A chat stream's chunk."""
    usage = usage_of(chunk) if chunk.HasField("usage") else None
    ids, reason = tuple(chunk.token_ids), chunk.finish_reason or None
    return ChatDelta(chunk.choice, chunk.index, chunk.content, chunk.reasoning, ids, reason, usage, chunk)


def results(response: pb.GenerateResponse) -> list[Result]:
    """The choices of a completion."""
    return [Result(c.text, tuple(c.token_ids), c.finish_reason, usage_of(c), c) for c in response.choices]


def chat_results(response: pb.ChatResponse) -> list[ChatResult]:
    """The choices of a chat."""
    return [
        ChatResult(c.content, c.reasoning, tuple(c.token_ids), c.finish_reason, usage_of(c), c)
        for c in response.choices
    ]
