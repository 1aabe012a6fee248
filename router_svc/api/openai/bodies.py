"""Bodies of the OpenAI endpoints, as they may come: types checked strictly, unknown fields kept aside by name.

Knows no limits of the model; bounds are checked in `limits`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, create_model

from router_svc.api.calls import ApiError, ChatMessage, invalid, template_options
from router_svc.api.openai.fields import (
    NO_EFFECT,
    REFUSED_OF_CHATS,
    REFUSED_OF_COMPLETIONS,
    REFUSED_OF_MESSAGES,
    Refused,
)
from router_svc.request import Code
from router_svc.sampling import PARAMETERS, Kind

_DIGITS = 10  # of a token id
_TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
}  # where a type has its text


def _whole(value: Any) -> Any:
    """16.0 is 16, as JSON has it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
_TYPES: dict[Kind, Any] = {
    "int": Whole,
    "float": float,
    "bool": bool,
    "strings": str | list[str],
    "ids": list[Whole],
    "biases": dict[str, float],
}


class Body(BaseModel):
    """Strict types (a whole number may stand for a float and 16.0 for 16), unknown fields allowed and kept by name."""

    model_config = ConfigDict(strict=True, extra="allow")
    refused: ClassVar[Mapping[str, Refused]] = {}

    def refuse_unserved(self, where: str = "") -> None:
        """Raise ApiError for a field that would change the output and is not served. where: what stands before its name."""
        for name, value in (self.model_extra or {}).items():
            if name in self.refused:
                self.refused[name].check(where + name, value)

    def unknown(self) -> list[str]:
        """Fields that came with a value and that nobody knows, those of the bodies inside as messages.name."""
        known = NO_EFFECT | self.refused.keys()
        found = {name for name, value in (self.model_extra or {}).items() if value is not None and name not in known}
        for name in type(self).model_fields:
            value = getattr(self, name)
            for inner in value if isinstance(value, list) else [value]:
                if isinstance(inner, Body):
                    found |= {f"{name}.{unknown}" for unknown in inner.unknown()}
        return sorted(found)


class StreamOptions(Body):
    """What a stream says beside its chunks: at its end, or in each event, the tokens so far."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


B = TypeVar("B", bound="SamplingBody")


def takes_parameters(kind: type[B]) -> type[B]:
    """Give a body every sampling parameter that it does not declare itself."""
    fields: dict[str, Any] = {
        p.name: (_TYPES[p.kind] | None, None) for p in PARAMETERS if p.name not in kind.model_fields
    }
    made: type[B] = create_model(
        kind.__name__, __base__=kind, __module__=kind.__module__, __doc__=kind.__doc__, **fields
    )
    return made


class SamplingBody(Body):
    """Fields that completions and chats share, beside the sampling parameters."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    priority: Whole | None = None
    request_id: str | None = None

    def refuse_unserved(self, where: str = "") -> None:
        super().refuse_unserved(where)
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "options", "stream true beside them")

    def sampling(self) -> dict[str, Any]:
        """The parameters that the call sets, as the service takes them."""
        given = {p.name: getattr(self, p.name) for p in PARAMETERS if getattr(self, p.name) is not None}
        for p in PARAMETERS:
            if p.kind == "strings" and isinstance(given.get(p.name), str):
                given[p.name] = [given[p.name]]
            if p.kind == "biases" and p.name in given:
                given[p.name] = _biases(p.name, given[p.name])
        return given

    def names(self) -> dict[str, str]:
        """What the caller calls parameters that have another name here."""
        return {}


@takes_parameters
class CompletionBody(SamplingBody):
    """POST /v1/completions."""

    refused = REFUSED_OF_COMPLETIONS
    prompt: str | list[Whole] | list[str] | list[list[Whole]]
    max_tokens: Whole | None = None
    logprobs: Whole | None = None
    n: Whole | None = None
    echo: bool | None = None
    best_of: Whole | None = None

    def refuse_unserved(self, where: str = "") -> None:
        super().refuse_unserved(where)
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise invalid("best_of", str(self.best_of), "none: not available in this version")
        if self.echo and self.sampling().get("truncate_prompt_tokens") is not None:
            raise invalid("echo", "true", "false beside truncate_prompt_tokens")

    @property
    def scores(self) -> bool:
        """Whether only the prompt's log-probabilities are wanted: no token is generated."""
        return bool(self.echo) and self.max_tokens == 0

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
    """One message of a chat. content: a text, or parts; assistants' turns come back as clients keep them, with null."""

    refused = REFUSED_OF_MESSAGES
    role: str
    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    name: str | None = None
    tool_call_id: str | None = None

    def turn(self, where: str) -> ChatMessage:
        """The message with its content as one text. Raises ApiError, naming the place within `where`."""
        self.refuse_unserved(f"{where}.")
        extra = {key: value for key in ("name", "tool_call_id") if (value := getattr(self, key)) is not None}
        reasoning = self.reasoning or self.reasoning_content
        if reasoning:  # templates read it under one name or the other
            extra |= {"reasoning": reasoning, "reasoning_content": reasoning}
        return ChatMessage(self.role, self._text(f"{where}.content"), extra)

    def _text(self, where: str) -> str:
        if self.content is None:
            if self.role != "assistant":
                raise invalid(where, "null", "text")
            return self.refusal or ""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(_part_text(part, where) for part in self.content)


@takes_parameters
class ChatBody(SamplingBody):
    """POST /v1/chat/completions."""

    refused = REFUSED_OF_CHATS
    messages: list[MessageBody]
    max_completion_tokens: Whole | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = None
    documents: list[dict[str, str]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None

    def refuse_unserved(self, where: str = "") -> None:
        super().refuse_unserved(where)
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs", str(self.top_logprobs), "logprobs true beside it")
        if self.continue_final_message and self.add_generation_prompt:
            raise invalid("add_generation_prompt", "true", "false beside continue_final_message")

    def sampling(self) -> dict[str, Any]:
        given = super().sampling()
        if self.max_completion_tokens is not None:
            given["max_tokens"] = self.max_completion_tokens
        given["logprobs"] = (self.top_logprobs or 0) if self.logprobs else None
        return given

    def names(self) -> dict[str, str]:
        found = {"logprobs": "top_logprobs"}
        return found if self.max_completion_tokens is None else found | {"max_tokens": "max_completion_tokens"}

    def turns(self) -> tuple[ChatMessage, ...]:
        """The messages with their content as plain text."""
        return tuple(m.turn(f"messages[{i}]") for i, m in enumerate(self.messages))

    def thinking(self) -> tuple[bool | None, dict[str, Any]]:
        """(enable_thinking or None, the other template options)."""
        thinking, options = template_options(self.chat_template_kwargs or {})
        if thinking is None:
            thinking = self.enable_thinking
        if self.documents is not None:
            options.setdefault("documents", self.documents)
        if self.reasoning_effort is not None:
            if self.reasoning_effort == "none" and thinking is None:
                thinking = False
            options.setdefault("reasoning_effort", self.reasoning_effort)
        return thinking, options


class TokenizeBody(ChatBody):
    """POST /tokenize: a prompt, or messages with whatever else a chat takes."""

    prompt: str | None = None
    messages: list[MessageBody] | None = None  # type: ignore[assignment]
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[Whole]


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


def _part_text(part: dict[str, Any], where: str) -> str:
    kind = part.get("type")
    text = part.get(_TEXT_PARTS.get(kind, "")) if isinstance(kind, str) else None
    if not isinstance(text, str):
        raise invalid(where, f"a part of type {kind!r}", "parts of type 'text' with a text")
    return text


def _biases(name: str, table: dict[str, float]) -> dict[int, float]:
    for token in table:
        if not (token.isascii() and token.isdecimal() and len(token) <= _DIGITS):
            raise invalid(name, f"key {token!r}", "token ids")
    return {int(token): bias for token, bias in table.items()}
