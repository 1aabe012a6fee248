"""Streams on the wire: lines that every client reads alike, no empty deltas, comments while nothing comes."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cluster.serve.http_server import HttpServer
from experts.address import Listen
from router_svc.api.calls import ApiError, Chunk
from router_svc.api.openai import stream as http_stream
from router_svc.api.openai.answers import STATUS, api_error_object
from router_svc.api.openai.silent import SilentChunks
from router_svc.api.openai.stream import EventStream, sse
from router_svc.request import Code, TokenLogprob
from tests.http_calls import opened, post, sent
from tests.patience import PATIENCE
from tests.server import RunningServer, one_process

QUESTION = [{"role": "user", "content": "/think What is 12 + 30?"}]


def events(raw: str) -> list[dict[str, Any]]:
    """The data of a stream that ended well, split at every line end that Unicode knows."""
    assert raw.endswith("data: [DONE]\n\n")
    return [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")]


@given(st.text(st.characters(codec="utf-8")))
def test_an_event_is_one_line_for_every_client(text: str) -> None:
    (line, blank) = sse({"text": text}).decode().splitlines()
    assert (json.loads(line.removeprefix("data: ")), blank) == ({"text": text}, "")


def test_line_ends_of_unicode_come_escaped(server: RunningServer) -> None:
    prompt = "a\u2028b\u2029c\x85d\r\ne\x0bf\x1cg"
    body = {"prompt": prompt, "max_tokens": 2, "echo": True, "stream": True}
    got = events(post(server, "/v1/completions", body)[1])
    assert "".join(e["choices"][0]["text"] for e in got).startswith(prompt)


def test_deltas_between_the_first_and_the_last_have_text(server: RunningServer) -> None:
    body = {"messages": QUESTION, "temperature": 0, "n": 2, "return_token_ids": True, "logprobs": True}
    whole = post(server, "/v1/chat/completions", body)[1]
    got = events(post(server, "/v1/chat/completions", body | {"stream": True})[1])
    for number, choice in enumerate(whole["choices"]):
        own = [e["choices"][0] for e in got if e["choices"][0]["index"] == number]
        assert own[0]["delta"]["role"] == "assistant"
        assert own[-1]["finish_reason"] == "stop"
        assert all(c["delta"].get("content") or c["delta"].get("reasoning") for c in own[1:-1])
        assert "".join(c["delta"].get("reasoning", "") for c in own) == choice["message"]["reasoning"]
        assert [t for c in own for t in c["token_ids"]] == choice["token_ids"]
        assert [t for c in own for t in c["logprobs"]["content"]] == choice["logprobs"]["content"]
        assert len(own) < len(choice["token_ids"]), "tags are tokens without text"
    assert got[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    assert not any("prompt_token_ids" in e for e in got[1:])
    for answer in (whole, got[0]):
        assert answer["choices"][0]["prompt_token_ids"] == answer["prompt_token_ids"]


def test_ids_and_logprobs_of_silent_chunks_go_with_the_next_one() -> None:
    silent = SilentChunks(frozenset({1}))
    first = Chunk(0, 0, "", (5,), logprobs=(TokenLogprob(5, -1.0),), prompt_token_ids=(9,), prompt_logprobs=(None,))
    assert silent.take(first) is None
    assert silent.take(Chunk(1, 0, "", (7,))) == Chunk(1, 0, "", (7,))
    assert silent.take(Chunk(0, 1, "", (6,), logprobs=(TokenLogprob(6, -2.0),))) is None
    joined = Chunk(
        0, 0, "x", (5, 6, 4), logprobs=tuple(TokenLogprob(t, -p) for t, p in ((5, 1.0), (6, 2.0), (4, 3.0))),
        prompt_token_ids=(9,), prompt_logprobs=(None,),
    )  # fmt: skip
    assert silent.take(Chunk(0, 2, "x", (4,), logprobs=(TokenLogprob(4, -3.0),))) == joined
    assert silent.take(Chunk(0, 3, "", (3,))) is None
    assert silent.take(Chunk(0, 4, "", (2,), finish_reason="stop")) == Chunk(0, 3, "", (3, 2), finish_reason="stop")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (http_stream.FIRST_COMMENT, http_stream.NEXT_COMMENT) == (5, 15)
    monkeypatch.setattr(http_stream, "FIRST_COMMENT", 0.2)
    monkeypatch.setattr(http_stream, "NEXT_COMMENT", 0.3)


@pytest.mark.usefixtures("impatient")
def test_a_stream_that_waits_in_the_queue_has_a_head_and_comments() -> None:
    with one_process(max_num_seqs=1, max_queue_len=1) as small:
        body = {"prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "stream": True}
        with sent(small, "/v1/completions", body) as running:
            first = running.getresponse()
            assert first.readline() == b"id: 0\n"
            with opened(small, "/v1/completions", body | {"max_tokens": 2}) as waiting:
                assert waiting.status == 200
                assert waiting.headers["content-type"].startswith("text/event-stream")
                assert all(waiting.readline().startswith(b": ") for _ in range(3))
                status, refused, _ = post(small, "/v1/completions", body)
                assert (status, refused["error"]["type"]) == (429, "rate_limit_error")
                first.close()
                running.close()
                rest = waiting.read().decode()
        assert sum(e["choices"][0]["finish_reason"] == "length" for e in events(rest)) == 1
        small.quiet()


@asynccontextmanager
async def streaming(*steps: bytes | float | Exception) -> AsyncIterator[str]:
    """The address of a server whose /v1/completions sends bytes, waits seconds and raises, one after the other."""

    async def sent() -> AsyncGenerator[bytes, None]:
        for step in steps:
            if isinstance(step, bytes):
                yield step
            elif isinstance(step, float):
                await asyncio.sleep(step)
            else:
                raise step

    async def answer(request: Request) -> Response:
        return EventStream(sent(), {})

    async def refusal(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return JSONResponse(api_error_object(error), STATUS[error.code])

    routes = [Route("/v1/completions", answer, methods=["POST"])]
    server = HttpServer(Starlette(routes=routes, exception_handlers={ApiError: refusal}), Listen("127.0.0.1", 0))
    await server.start(lambda what: pytest.fail(what))
    try:
        yield f"http://127.0.0.1:{server.port}/v1"
    finally:
        await server.stop()


def event(text: str, number: int) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": None, "logprobs": None}
    frame = {"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}
    return b"id: %d\n" % number + sse(frame)


async def read(url: str) -> list[str]:
    """The texts of a stream, by the official client."""
    async with openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0, timeout=PATIENCE) as client:
        stream = await client.completions.create(model="m", prompt="p", stream=True)
        return [chunk.choices[0].text async for chunk in stream]


@pytest.mark.usefixtures("impatient")
async def test_the_official_client_reads_over_comments_anywhere() -> None:
    async with streaming(0.7, event("a", 0), 0.7, event("b", 1), b"data: [DONE]\n\n") as url:
        assert await read(url) == ["a", "b"]


FULL = ApiError(Code.RESOURCE_EXHAUSTED, "the queue is full")


async def test_a_refusal_before_the_head_has_its_own_status() -> None:
    async with streaming(0.05, FULL) as url:
        with pytest.raises(openai.RateLimitError, match="the queue is full"):
            await read(url)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((1.0, FULL), "the queue is full"),
        ((event("a", 0), FULL), "the queue is full"),
        ((event("a", 0), ZeroDivisionError()), "its log says why"),
    ],
)
async def test_what_goes_wrong_after_the_head_is_an_event_of_its_own(steps: tuple[Any, ...], said: str) -> None:
    async with streaming(*steps) as url:
        with pytest.raises(openai.APIError, match=said) as caught:
            await read(url)
        assert not isinstance(caught.value, openai.APIStatusError)
