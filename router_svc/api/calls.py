"""Calls and answers of the front door as data; the gRPC and HTTP faces translate to and from these."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from router_svc.request import Code, Timings

LONGEST_MESSAGE = 1000  # characters; a gRPC client drops trailers over 8 to 16 KB, and with them the code
_LONGEST_FOUND = 200  # characters of what a caller sent


class ApiError(Exception):
    """A call that ends without (the rest of) an answer.

    param: the field at fault
    retry_after: in seconds
    reason: a word for programs, where `code` says too little
    A message is cut to what any client takes: it may quote what the caller sent.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        param: str | None = None,
        retry_after: float | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = shortened(message, LONGEST_MESSAGE)
        self.param = param
        self.retry_after = retry_after
        self.reason = reason


def invalid(param: str, found: str, expected: str) -> ApiError:
    """The error for a field that is out of bounds."""
    found = shortened(found, _LONGEST_FOUND)
    return ApiError(Code.INVALID_ARGUMENT, f"{param}: found {found}, expected {expected}", param)


def context_exceeded(param: str, found: str, expected: str, max_model_len: int) -> ApiError:
    """The error for a call with more tokens than the model takes, in the words and with the code that clients look for
    before they shorten it."""
    text = f"{param}: found {found}, expected {expected}: this model's maximum context length is {max_model_len} tokens"
    return ApiError(Code.INVALID_ARGUMENT, text, param, reason="context_length_exceeded")


def shortened(text: str, limit: int = _LONGEST_FOUND) -> str:
    """The text, with an ellipsis where it has more than `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def template_options(given: Mapping[str, Any]) -> tuple[bool | None, dict[str, Any]]:
    """(enable_thinking or None, the other options) of a chat_template_kwargs. Raises ApiError."""
    options = dict(given)
    thinking = options.pop("enable_thinking", None)
    if thinking is not None and not isinstance(thinking, bool):
        raise invalid("chat_template_kwargs.enable_thinking", repr(thinking), "true or false")
    for name in ("messages", "continue_final_message"):
        if name in options:
            raise invalid(f"chat_template_kwargs.{name}", "a value", "unset: the call's own field is used")
    return thinking, options


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """A completion of text or ids.

    timeout: in seconds
    priority: lower first
    prompt_logprobs: how many alternatives at each token of the prompt; None: its log-probabilities are not wanted
    scores: only the prompt is wanted: no token is generated
    names: what the caller calls a field, where it is not its name here ("prompt" and sampling parameters)
    """

    prompt: str | tuple[int, ...]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    request_id: str = ""
    priority: int = 0
    timeout: float | None = None
    add_special_tokens: bool = True
    prompt_logprobs: int | None = None
    scores: bool = False
    api_key: str = ""
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn; content is plain text. extra: what else a template may read of it, such as its reasoning."""

    role: str
    content: str
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatCall:
    """An answer to messages through the model's chat template.

    enable_thinking: None = the template's default
    add_special_tokens: beside those that the template writes
    continues: the answer goes on with the last message instead of being a turn of its own
    opens: the prompt ends with the beginning of an assistant's turn
    names: as for a GenerateCall
    """

    messages: tuple[ChatMessage, ...]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    enable_thinking: bool | None = None
    template_options: dict[str, Any] = field(default_factory=dict)
    add_special_tokens: bool = False
    continues: bool = False
    opens: bool = True
    request_id: str = ""
    priority: int = 0
    timeout: float | None = None
    api_key: str = ""
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one choice; cached_tokens of the prompt were reused, reasoning_tokens of the completion were reasoning."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class NamedLogprob:
    """A token with its log-probability, as it stands in the text.

    text: what it adds, or its name where it adds no whole characters
    raw: its part of the text's UTF-8
    offset: characters of the text before it
    logprob: natural log; None for a prompt's first token
    top: the likeliest tokens at its place, the likeliest first
    """

    token_id: int
    text: str
    raw: bytes
    offset: int
    logprob: float | None
    top: tuple["NamedLogprob", ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """New output of one choice.

    index: its first token's place among the choice's tokens
    stop_reason: the string or id of the caller's that ended the choice, None where the model did
    usage, timings: in a choice's last chunk, which is the one with a finish_reason
    reasoning: chats only
    prompt_token_ids, prompt_logprobs: in a choice's first chunk
    """

    choice: int
    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    reasoning: str = ""
    logprobs: tuple[NamedLogprob, ...] = ()
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    prompt_token_ids: tuple[int, ...] = ()
    prompt_logprobs: tuple[NamedLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a client may want to know of the served model. created: when serving it began, in Unix seconds."""

    name: str
    architecture: str
    max_model_len: int
    vocab_size: int
    dtype: str
    layers: int
    experts: int
    top_k: int
    quantization: str = "none"
    created: int = field(default_factory=lambda: int(time.time()))
