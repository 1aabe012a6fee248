"""Completions and chats over HTTP: one answer or a stream of server-sent events; a disconnect ends the work."""

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from experts.background import watch_task
from router_svc.api.calls import ApiError, ChatCall, Chunk, GenerateCall, invalid, shortened
from router_svc.api.openai.answers import Answer
from router_svc.api.openai.bodies import Body, ChatBody, CompletionBody, SamplingBody
from router_svc.api.openai.gone import unless_gone
from router_svc.api.openai.silent import SilentChunks
from router_svc.api.openai.stream import EventStream, sse
from router_svc.api.service import Service
from router_svc.request import Code

log = logging.getLogger(__name__)
Parts = AsyncGenerator[tuple[int, Chunk], None]  # (prompt number, chunk with its choice's number in the answer)


class CompletionAnswering:
    """POST /v1/completions."""

    def __init__(self, service: Service, strict: bool) -> None:
        """strict: fields outside the table are refused."""
        self._service = service
        self._strict = strict

    async def answer(self, request: Request, body: CompletionBody) -> Response:
        headers = check_fields(body, self._strict)
        prompts = body.prompts()
        most = self._service.limits.max_batch
        if len(prompts) > most:
            raise invalid("prompt", f"{len(prompts)} prompts", f"at most {most}")
        answer = _new_answer("text", self._service, body, body.logprobs is not None)
        fields = body.sampling()
        choices = body.n or 1
        calls = [
            GenerateCall(
                prompt=prompt,
                sampling=fields,
                request_id=answer.request_id if len(prompts) == 1 else f"{answer.request_id}-{i}",
                priority=body.priority or 0,
                add_special_tokens=True if body.add_special_tokens is None else body.add_special_tokens,
                prompt_logprobs=body.logprobs if body.echo and body.logprobs is not None else None,
                scores=body.scores,
                names=body.names(),
            )
            for i, prompt in enumerate(prompts)
        ]
        echoes: dict[int, str] = {}
        if body.echo:
            for i, prompt in enumerate(prompts):
                text = prompt if isinstance(prompt, str) else await self._service.detokenize(prompt)
                echoes |= {i * choices + c: text for c in range(choices)}
        parts = _several([self._service.generate(call) for call in calls], choices)
        return await _respond(request, body, answer, parts, echoes, headers)


class ChatAnswering:
    """POST /v1/chat/completions."""

    def __init__(self, service: Service, reasoning_field: str, strict: bool) -> None:
        """strict: fields outside the table are refused."""
        self._service = service
        self._strict = strict
        self._reasoning_field = reasoning_field

    async def answer(self, request: Request, body: ChatBody) -> Response:
        headers = check_fields(body, self._strict)
        answer = _new_answer("chat", self._service, body, bool(body.logprobs))
        answer.reasoning_field = self._reasoning_field
        call = chat_call(body, answer.request_id)
        parts = _several([self._service.chat(call)], 1)
        if body.include_reasoning is False:
            parts = _without_reasoning(parts)
        return await _respond(request, body, answer, parts, {}, headers)


def chat_call(body: ChatBody, request_id: str = "") -> ChatCall:
    """The body as the service takes it."""
    thinking, options = body.thinking()
    return ChatCall(
        messages=body.turns(),
        sampling=body.sampling(),
        enable_thinking=thinking,
        template_options=options,
        add_special_tokens=bool(body.add_special_tokens),
        continues=bool(body.continue_final_message),
        opens=body.add_generation_prompt is not False,
        request_id=request_id,
        priority=body.priority or 0,
        names=body.names(),
    )


def _new_answer(kind: str, service: Service, body: SamplingBody, with_logprobs: bool) -> Answer:
    prefix = "chatcmpl" if kind == "chat" else "cmpl"
    return Answer(
        kind=kind,
        request_id=body.request_id or f"{prefix}-{secrets.token_hex(12)}",
        model=service.info.name,
        with_ids=bool(body.return_token_ids),
        with_logprobs=with_logprobs,
    )


async def _without_reasoning(parts: Parts) -> Parts:
    """Reasoning is generated and counted, and not sent."""
    async with aclosing(parts) as chunks:
        async for prompt, chunk in chunks:
            yield prompt, replace(chunk, reasoning="")


async def _several(streams: list[AsyncGenerator[Chunk, None]], choices: int) -> Parts:
    """Chunks of one or several requests as they come, choices numbered through. Closing it closes them all."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for chunk in only:
                yield 0, chunk
        return
    queue: asyncio.Queue[tuple[int, Chunk | Exception | None]] = asyncio.Queue(maxsize=64)

    async def pump(number: int, stream: AsyncGenerator[Chunk, None]) -> None:
        end: Exception | None = None
        try:
            async with aclosing(stream) as chunks:
                async for chunk in chunks:
                    await queue.put((number, replace(chunk, choice=number * choices + chunk.choice)))
        except Exception as error:  # raised again by the reader, which would wait for ever otherwise
            end = error
        await queue.put((number, end))

    async def failed(what: str) -> None:
        await queue.put((0, RuntimeError(what)))

    tasks = [watch_task(f"prompt {i}", pump(i, stream), failed, returns=True) for i, stream in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            number, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield number, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _respond(
    request: Request,
    body: SamplingBody,
    answer: Answer,
    parts: Parts,
    echoes: dict[int, str],
    headers: dict[str, str],
) -> Response:
    if request.headers.get("last-event-id"):
        raise ApiError(
            Code.INVALID_ARGUMENT, "Last-Event-ID: found one, expected none: resuming is not available in this version"
        )
    if body.stream:
        options = body.stream_options
        usage = bool(options and options.include_usage)
        answer.counts = bool(options and options.continuous_usage_stats)
        return EventStream(_events(parts, answer, echoes, usage), headers)
    collected = await unless_gone(request.receive, _all(parts))
    return JSONResponse(answer.whole(collected, echoes), headers=headers)


async def _events(parts: Parts, answer: Answer, echoes: dict[int, str], usage: bool) -> AsyncGenerator[bytes, None]:
    silent = SilentChunks(None if answer.kind == "chat" else frozenset(echoes))
    async with aclosing(parts):
        async for prompt, whole in parts:
            chunk = silent.take(whole)
            if chunk is not None:
                yield b"id: %d\n" % chunk.index + sse(answer.event(chunk, prompt, echoes.pop(chunk.choice, "")))
    if usage:
        yield sse(answer.usage_event())
    yield b"data: [DONE]\n\n"


async def _all(parts: Parts) -> list[tuple[int, Chunk]]:
    """All chunks; breaking off ends the work."""
    async with aclosing(parts):
        return [part async for part in parts]


def check_fields(body: Body, strict: bool) -> dict[str, str]:
    """Raise ApiError for fields that are not served; name unknown ones in a warning, in the log and to the client.

    strict: unknown ones are refused as well.
    """
    body.refuse_unserved()
    unknown = body.unknown()
    if not unknown:
        return {}
    if strict:
        raise invalid(unknown[0], "an unknown field", "none (--strict-fields)")
    # The names are the caller's: only what a header line can hold, and no more than clients read.
    names = re.sub(r'[^ -~]|["\\]', "?", shortened(", ".join(unknown)))
    log.warning("ignored unknown fields: %s", names)
    return {"warning": f'299 tokenyard "ignored unknown fields: {names}"'}
