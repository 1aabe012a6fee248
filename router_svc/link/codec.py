"""Frames of the link: a length, then msgpack of built-in types. Unpacking checks shape; nothing is ever unpickled."""

import asyncio
import struct
from dataclasses import fields
from typing import Any

import msgpack

from experts.hello import Party
from router_svc.request import (
    Cancel,
    Claim,
    Code,
    EngineRequest,
    Event,
    FailedEvent,
    Hold,
    Message,
    Timings,
    TokenEvent,
    TokenLogprob,
)
from router_svc.sampling import Sampling

FORMAT = 1  # of the frames: raise it with every change of them
FRAME_LIMIT = 64 << 20  # bytes; the longest prompt's ids take 1.3 MB
_LENGTH = struct.Struct("!I")
_SAMPLING = tuple(f.name for f in fields(Sampling) if f.init)


class BadFrame(Exception):
    """Bytes that are no frame of this link."""


def party(rank: int = -1) -> Party:
    """What an end of a link says of itself in the hello. rank: of an attention rank; an ingress has none."""
    return Party("engine link", FORMAT, rank)


def frame(value: Any) -> bytes:
    """A value as one frame."""
    body = msgpack.packb(value, use_bin_type=True)
    return _LENGTH.pack(len(body)) + bytes(body)


async def read_frame(reader: asyncio.StreamReader) -> Any:
    """The next frame's value, None at the end of the stream. Raises BadFrame."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > FRAME_LIMIT:
            raise BadFrame(f"a frame of {length} bytes, at most {FRAME_LIMIT} are taken")
        body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    try:
        return msgpack.unpackb(body, use_list=True, strict_map_key=True)
    except ValueError as error:
        raise BadFrame(f"not msgpack: {error}") from None


def pack_message(message: Message | Claim) -> list[Any]:
    """An ingress's message as built-in types."""
    match message:
        case EngineRequest():
            sampling = [getattr(message.sampling, name) for name in _SAMPLING]
            return [
                "submit", message.request_id, message.prompt_ids, sampling, message.priority, message.deadline,
                message.attempt, message.body,
            ]  # fmt: skip
        case Cancel():
            return ["cancel", message.request_id, message.choice]
        case Hold():
            return ["hold", message.request_id, message.held]
        case Claim():
            return ["claim", message.request_id, message.attempt, message.body]


def unpack_message(value: Any) -> Message | Claim:
    """The inverse of pack_message. Raises BadFrame."""
    try:
        match value:
            case ["submit", str(request_id), list(ids), list(sampling), int(priority), deadline, int(attempt),
                  str(body)]:  # fmt: skip
                given = {name: _tuples(v) for name, v in zip(_SAMPLING, sampling, strict=True)}
                return EngineRequest(request_id, tuple(ids), Sampling(**given), priority, deadline, attempt, body)
            case ["cancel", str(request_id), choice]:
                return Cancel(request_id, choice)
            case ["hold", str(request_id), bool(held)]:
                return Hold(request_id, held)
            case ["claim", str(request_id), int(attempt), str(body)]:
                return Claim(request_id, attempt, body)
    except (TypeError, ValueError) as error:
        raise BadFrame(str(error)) from None
    raise BadFrame(f"no message: {str(value)[:80]}")


def pack_event(event: Event) -> list[Any]:
    """An engine's event as built-in types."""
    if isinstance(event, FailedEvent):
        return ["failed", event.request_id, event.attempt, event.code.value, event.message, event.retry_after]
    t = event.timings
    return [
        "tokens", event.request_id, event.attempt, event.choice, event.index, event.token_ids,
        [_pack_logprob(entry) for entry in event.logprobs], [_pack_logprob(entry) for entry in event.prompt_logprobs],
        event.finish_reason, event.completion_tokens, event.cached_tokens, [t.queued, t.first_token, t.total],
    ]  # fmt: skip


def unpack_event(value: Any) -> Event:
    """The inverse of pack_event. Raises BadFrame."""
    try:
        match value:
            case ["failed", str(request_id), int(attempt), str(code), str(message), retry_after]:
                return FailedEvent(request_id, attempt, Code(code), message, retry_after)
            case ["tokens", str(request_id), int(attempt), int(choice), int(index), list(ids), list(logprobs),
                  list(prompt), reason, int(count), int(cached), list(timings)]:  # fmt: skip
                return TokenEvent(
                    request_id, attempt, choice, index, tuple(ids),
                    tuple(entry for entry in map(_unpack_logprob, logprobs) if entry is not None),
                    tuple(map(_unpack_logprob, prompt)), reason, count, cached, Timings(*timings),
                )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise BadFrame(str(error)) from None
    raise BadFrame(f"no event: {str(value)[:80]}")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _pack_logprob(entry: TokenLogprob | None) -> list[Any] | None:
    return None if entry is None else [entry.token_id, entry.logprob, entry.top]


def _unpack_logprob(value: Any) -> TokenLogprob | None:
    if value is None:
        return None
    token, logprob, top = value
    return TokenLogprob(token, logprob, _tuples(top))
