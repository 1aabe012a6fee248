"""Chunks of the service as OpenAI's JSON: whole answers and stream events. Plain dicts, built by hand for speed."""

import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from router_svc.api.calls import ApiError, Chunk, NamedLogprob
from router_svc.request import Code

STATUS = {
    Code.INVALID_ARGUMENT: 400,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.DEADLINE_EXCEEDED: 504,
    Code.CANCELLED: 499,
    Code.UNAVAILABLE: 503,
    Code.ABORTED: 409,
    Code.INTERNAL: 500,
}
_WORDS = {499: "cancelled"}  # which http has no words for
_KINDS = {
    400: "invalid_request_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


def error_object(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object. code: a word for programs; None: the status as one."""
    code = code or _WORDS.get(status) or HTTPStatus(status).phrase.lower().replace(" ", "_")
    return {"error": {"message": message, "type": _KINDS.get(status, "api_error"), "param": param, "code": code}}


def api_error_object(error: ApiError) -> dict[str, Any]:
    """The same for a service's error."""
    return error_object(error.message, STATUS[error.code], error.param, error.reason or error.code.value.lower())


@dataclass(slots=True)
class Answer:
    """One HTTP answer in the making. reasoning_field: the name that reasoning text travels under."""

    kind: str  # "chat" or "text"
    request_id: str
    model: str
    with_ids: bool
    with_logprobs: bool
    reasoning_field: str = "reasoning"
    created: int = field(default_factory=lambda: int(time.time()))
    started: set[int] = field(default_factory=set)
    prompt_tokens: dict[int, int] = field(default_factory=dict)
    completion_tokens: int = 0
    cached_tokens: dict[int, int] = field(default_factory=dict)  # by prompt
    counts: bool = False  # every event of a stream says the tokens so far
    reasoning_tokens: int = 0

    def event(self, chunk: Chunk, prompt: int = 0, echo: str = "") -> dict[str, Any]:
        """A stream event for a chunk.

        prompt: number of the prompt it belongs to
        echo: text to put in front
        """
        self._account(chunk, prompt)
        choice: dict[str, Any] = {"index": chunk.choice}
        if self.kind == "chat":
            delta: dict[str, Any] = {}
            if chunk.choice not in self.started:
                delta["role"] = "assistant"
                delta["content"] = ""
            if chunk.reasoning:
                delta[self.reasoning_field] = chunk.reasoning
            if chunk.text:
                delta["content"] = chunk.text
            choice["delta"] = delta
        else:
            choice["text"] = echo + chunk.text
        if self.with_logprobs:
            choice["logprobs"] = self._logprobs([chunk])
        choice["finish_reason"] = chunk.finish_reason
        if chunk.finish_reason:
            choice["stop_reason"] = chunk.stop_reason
        if self.with_ids:
            choice["token_ids"] = list(chunk.token_ids)
            if chunk.prompt_token_ids:
                choice["prompt_token_ids"] = list(chunk.prompt_token_ids)
        first = not self.started
        self.started.add(chunk.choice)
        usage = {"usage": self._usage()} if self.counts else {}
        return self._frame([choice], stream=True) | usage | (self._prompt_ids(chunk) if first else {})

    def usage_event(self) -> dict[str, Any]:
        """The event that ends a stream with include_usage."""
        return self._frame([], stream=True) | {"usage": self._usage()}

    def whole(self, parts: list[tuple[int, Chunk]], echoes: dict[int, str]) -> dict[str, Any]:
        """The answer of a call that does not stream.

        parts: (prompt number, chunk)
        echoes: by choice
        """
        by_choice: dict[int, list[Chunk]] = {}
        for prompt, chunk in parts:
            self._account(chunk, prompt)
            by_choice.setdefault(chunk.choice, []).append(chunk)
        choices = [self._whole_choice(n, chunks, echoes.get(n, "")) for n, chunks in sorted(by_choice.items())]
        return self._frame(choices, stream=False) | {"usage": self._usage()} | self._prompt_ids(parts[0][1])

    def _whole_choice(self, number: int, chunks: list[Chunk], echo: str) -> dict[str, Any]:
        last = chunks[-1]
        text = "".join(chunk.text for chunk in chunks)
        choice: dict[str, Any] = {"index": number}
        if self.kind == "chat":
            reasoning = "".join(chunk.reasoning for chunk in chunks)
            choice["message"] = {"role": "assistant", "content": text, self.reasoning_field: reasoning or None}
        else:
            choice["text"] = echo + text
        choice["logprobs"] = self._logprobs(chunks) if self.with_logprobs else None
        choice["finish_reason"] = last.finish_reason
        choice["stop_reason"] = last.stop_reason
        if self.with_ids:
            choice["token_ids"] = [token for chunk in chunks for token in chunk.token_ids]
            choice["prompt_token_ids"] = list(chunks[0].prompt_token_ids)
        return choice

    def _account(self, chunk: Chunk, prompt: int) -> None:
        self.completion_tokens += len(chunk.token_ids)
        if chunk.prompt_token_ids:
            self.prompt_tokens[prompt] = len(chunk.prompt_token_ids)
        if chunk.usage is not None:
            self.reasoning_tokens += chunk.usage.reasoning_tokens
            # Choices of one prompt share what was cached of it; prompts do not.
            self.cached_tokens[prompt] = max(self.cached_tokens.get(prompt, 0), chunk.usage.cached_tokens)

    def _usage(self) -> dict[str, Any]:
        prompt = sum(self.prompt_tokens.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.completion_tokens,
            "total_tokens": prompt + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self.cached_tokens.values())},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }

    def _prompt_ids(self, first: Chunk) -> dict[str, list[int]]:
        """A chat has one prompt, so that its ids stand beside the choices, where vLLM has them, too."""
        wanted = self.with_ids and self.kind == "chat"
        return {"prompt_token_ids": list(first.prompt_token_ids)} if wanted else {}

    def _frame(self, choices: list[dict[str, Any]], stream: bool) -> dict[str, Any]:
        name = "text_completion"
        if self.kind == "chat":
            name = "chat.completion.chunk" if stream else "chat.completion"
        return {"id": self.request_id, "object": name, "created": self.created, "model": self.model, "choices": choices}

    def _logprobs(self, chunks: list[Chunk]) -> dict[str, Any]:
        entries = [entry for chunk in chunks for entry in (*chunk.prompt_logprobs, *chunk.logprobs)]
        return _chat_logprobs(entries) if self.kind == "chat" else _text_logprobs(entries)


def _chat_logprobs(entries: list[NamedLogprob]) -> dict[str, Any]:
    return {"content": [_entry(entry) | {"top_logprobs": [_entry(one) for one in entry.top]} for entry in entries]}


def _entry(entry: NamedLogprob) -> dict[str, Any]:
    return {"token": entry.text, "logprob": entry.logprob, "bytes": list(entry.raw)}


def _text_logprobs(entries: list[NamedLogprob]) -> dict[str, Any]:
    rows = [_named(entry) for entry in entries]
    return {
        "tokens": [name for name, _ in rows],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [top for _, top in rows],
        "text_offset": [entry.offset for entry in entries],
    }


def _named(entry: NamedLogprob) -> tuple[str, dict[str, float] | None]:
    """(the token's name, the likeliest tokens and itself by name). A name is the text; of two tokens with one text the
    less likely one goes by its id, so that none takes the other's place."""
    if entry.logprob is None:
        return entry.text, None
    names: dict[int, str] = {}
    found: dict[str, float] = {}
    for one in sorted((*entry.top, entry), key=lambda one: -(one.logprob or 0.0)):
        if one.token_id not in names and one.logprob is not None:
            names[one.token_id] = name = one.text if one.text not in found else f"token_id:{one.token_id}"
            found[name] = one.logprob
    return names[entry.token_id], found
