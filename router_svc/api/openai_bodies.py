"""Bodies of the OpenAI endpoints, as they may come: types checked strictly, unknown fields kept aside by name.

Knows no limits of the model; bounds are checked in `limits`.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from router_svc.api.calls import ApiError, ChatMessage, SamplingFields, invalid, template_options
from router_svc.request import Code

_DIGITS = 10  # of a token id


class Body(BaseModel):
    """Strict types (a whole number may stand for a float), unknown fields allowed and named by `ignored`."""

    model_config = ConfigDict(strict=True, extra="allow")

    def ignored(self) -> list[str]:
        """Unknown fields that came with a value, those of the bodies inside as messages.name."""
        found = {name for name, value in (self.model_extra or {}).items() if value is not None}
        for name in type(self).model_fields:
            value = getattr(self, name)
            for inner in value if isinstance(value, list) else [value]:
                if isinstance(inner, Body):
                    found |= {f"{name}.{unknown}" for unknown in inner.ignored()}
        return sorted(found)


class StreamOptions(Body):
    """What a stream tells beside its chunks."""

    include_usage: bool = False


class SamplingBody(Body):
    """Fields that completions and chats share. user, metadata and store are accepted and have no effect."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    priority: int | None = None
    request_id: str | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    functions: list[Any] | None = None
    resume_from: int | None = None

    def refuse_unbuilt(self) -> None:
        """Raise ApiError for what this version does not do."""
        for name in ("tools", "functions"):
            if getattr(self, name):
                raise invalid(
                    name, f"{len(getattr(self, name))} of them", f"unset: {name} are not available in this version"
                )
        if self.tool_choice not in (None, "none", "auto"):
            raise invalid("tool_choice", repr(self.tool_choice), "none: tools are not available in this version")
        kind = (self.response_format or {}).get("type", "text")
        if kind != "text":
            raise invalid(
                "response_format", f"type {kind!r}", "type 'text': structured output is not available in this version"
            )
        if self.resume_from is not None:
            raise invalid("resume_from", str(self.resume_from), "unset: resuming is not available in this version")
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "options", "stream true beside them")

    def sampling(self, max_tokens: int | None, logprobs: int | None) -> SamplingFields:
        """The fields as the service takes them."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingFields(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
            stop=tuple(stop),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            ignore_eos=bool(self.ignore_eos),
            logprobs=logprobs,
            n=self.n,
            logit_bias=_biases(self.logit_bias or {}),
        )


class CompletionBody(SamplingBody):
    """POST /v1/completions."""

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None

    def refuse_unbuilt(self) -> None:
        super().refuse_unbuilt()
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise invalid("best_of", str(self.best_of), "unset: best_of is not available")
        if self.suffix:
            raise invalid("suffix", "a suffix", "unset: suffix is not available")

    def prompts(self) -> list[str | tuple[int, ...]]:
        """The prompts, one or several."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise invalid("prompt", "an empty list", "at least one prompt")
        if isinstance(self.prompt[0], int):
            return [tuple(self.prompt)]
        return [p if isinstance(p, str) else tuple(p) for p in self.prompt]


class MessageBody(Body):
    """One chat message; content may come in parts of type text."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[Any] | None = None


class ChatBody(SamplingBody):
    """POST /v1/chat/completions."""

    messages: list[MessageBody]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None

    def refuse_unbuilt(self) -> None:
        super().refuse_unbuilt()
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs", str(self.top_logprobs), "logprobs true beside it")

    def turns(self) -> tuple[ChatMessage, ...]:
        """The messages with their content as plain text."""
        return tuple(ChatMessage(m.role, _flat(m, i)) for i, m in enumerate(self.messages))

    def thinking(self) -> tuple[bool | None, dict[str, Any]]:
        """(enable_thinking or None, the other template options)."""
        thinking, options = template_options(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            if self.reasoning_effort == "none" and thinking is None:
                thinking = False
            options.setdefault("reasoning_effort", self.reasoning_effort)
        return thinking, options


class TokenizeBody(ChatBody):
    """POST /tokenize: a prompt, or messages with whatever else a chat takes."""

    prompt: str | None = None
    messages: list[MessageBody] | None = None  # type: ignore[assignment]


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]


def parse(kind: type[Body], raw: bytes) -> Any:
    """The body as `kind`. Raises ApiError with one line that names the first wrong field."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise ApiError(
            Code.INVALID_ARGUMENT, f"body: found invalid UTF-8 at byte {error.start}, expected UTF-8 JSON"
        ) from None
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        if first["type"] == "missing":
            raise ApiError(Code.INVALID_ARGUMENT, f"{where}: missing, expected a value", where) from None
        message = f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}"
        raise ApiError(Code.INVALID_ARGUMENT, message, where) from None


def _flat(message: MessageBody, number: int) -> str:
    where = f"messages[{number}].content"
    if message.tool_calls:
        raise invalid(f"messages[{number}].tool_calls", "tool calls", "unset: tools are not available in this version")
    if message.content is None:
        raise invalid(where, "null", "text")
    if isinstance(message.content, str):
        return message.content
    parts = []
    for part in message.content:
        if part.get("type") not in ("text", "input_text") or not isinstance(part.get("text"), str):
            raise invalid(where, f"a part of type {part.get('type')!r}", "parts of type 'text'")
        parts.append(part["text"])
    return "".join(parts)


def _biases(table: dict[str, float]) -> tuple[tuple[int, float], ...]:
    for token in table:
        if not (token.isascii() and token.isdecimal() and len(token) <= _DIGITS):
            raise invalid("logit_bias", f"key {token!r}", "token ids")
    return tuple((int(token), bias) for token, bias in table.items())
