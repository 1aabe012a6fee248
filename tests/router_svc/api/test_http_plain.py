"""The HTTP face below the openai client: raw bodies, statuses, headers, and generated requests."""

import asyncio
import http.client
import json
import socket
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import Request

from router_svc.api.calls import Chunk
from router_svc.api.openai.app import BODY_LIMIT, _body
from router_svc.api.openai.generate import _several
from router_svc.client import Client
from tests.http_calls import post, send
from tests.patience import PATIENCE
from tests.server import RunningServer, one_process


def test_health_and_version(server: RunningServer) -> None:
    assert send(server, "GET", "/health")[:2] == (200, {"status": "ready"})
    assert send(server, "GET", "/version")[1]["version"]


def test_tokenize_and_back(server: RunningServer) -> None:
    status, found, _ = post(server, "/tokenize", {"prompt": "12 + 3 = Ω"})
    assert status == 200
    assert found["count"] == len(found["tokens"])
    assert post(server, "/detokenize", {"tokens": found["tokens"]})[1] == {"prompt": "12 + 3 = Ω"}
    chat = post(server, "/tokenize", {"messages": [{"role": "user", "content": "hi"}]})[1]
    assert post(server, "/detokenize", {"tokens": chat["tokens"]})[1]["prompt"] == "<|startoftext|>hi<|extra_0|>"
    assert post(server, "/detokenize", {"tokens": [10**6]})[0] == 400


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"add_special_tokens": True},
        {"temperature": 0, "seed": 3, "logprobs": True},
    ],
)
def test_tokenize_is_the_chats_prompt(server: RunningServer, options: dict[str, Any]) -> None:
    body = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}], **options}
    chat = post(server, "/v1/chat/completions", body | {"max_tokens": 1, "return_token_ids": True})[1]
    found = post(server, "/tokenize", body)[1]
    assert found["tokens"] == chat["prompt_token_ids"]
    assert found["count"] == chat["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, "tools"),
        ({"messages": []}, "messages"),
        ({"prompt": 5}, "prompt"),
    ],
)
def test_what_tokenize_does_not_take_is_named(server: RunningServer, body: dict[str, Any], named: str) -> None:
    status, found, _ = post(server, "/tokenize", body)
    assert status == 400
    assert named in found["error"]["message"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"{", "body"),
        (b"[]", "body"),
        (b'{"prompt": "\xff"}', "UTF-8"),
        (b'{"prompt": ""}', "prompt"),
        (b"{}", "prompt"),
        (b'{"prompt": [1, 99999]}', "99999"),
        (b'{"prompt": "a", "temperature": "hot"}', "temperature"),
        (b'{"prompt": "a", "max_tokens": 0}', "max_tokens"),
        (b'{"prompt": "a", "max_tokens": true}', "max_tokens"),
        (b'{"prompt": "a", "logprobs": 100}', "logprobs"),
        (b'{"prompt": "a", "best_of": 3}', "best_of"),
        (b'{"prompt": "a", "suffix": "b"}', "suffix"),
        (b'{"prompt": "a", "seed": 99999999999999999999}', "seed"),
        (b'{"prompt": "a", "logit_bias": {"--5": 1}}', "logit_bias"),
        (b'{"prompt": "a", "logit_bias": {" 5 ": 1}}', "logit_bias"),
        (b'{"prompt": "a", "logit_bias": {"%s": 1}}' % (b"9" * 5000), "logit_bias"),
        (b'{"prompt": "a", "tools": [{}]}', "tools"),
        (b'{"prompt": "a", "tool_choice": "required"}', "tool_choice"),
        (b'{"prompt": "a", "response_format": {"type": "json_schema"}}', "response_format"),
        (b'{"prompt": "a", "resume_from": 3}', "resume_from"),
        (b'{"prompt": "a", "stream_options": {"include_usage": true}}', "stream_options"),
    ],
)
def test_bad_bodies_get_one_line(server: RunningServer, body: bytes, named: str) -> None:
    status, found, _ = send(server, "POST", "/v1/completions", body)
    assert status == 400
    assert named in found["error"]["message"]
    assert "\n" not in found["error"]["message"]
    assert found["error"]["type"] == "invalid_request_error"


def test_names_that_are_not_built_are_refused(server: RunningServer) -> None:
    assert post(server, "/v1/responses", {"input": "x"})[0] == 404
    assert send(server, "GET", "/v1/completions")[0] == 405
    status, found, _ = send(server, "POST", "/v1/completions", b'{"prompt": "a"}', **{"last-event-id": "3"})
    assert status == 400
    assert "Last-Event-ID" in found["error"]["message"]


def test_unknown_fields_are_ignored_and_named(server: RunningServer) -> None:
    status, _, headers = post(server, "/v1/completions", {"prompt": "a", "max_tokens": 1, "colour": "red", "size": 2})
    assert status == 200
    assert "colour, size" in headers["warning"]
    chat = {"messages": [{"role": "user", "content": "a", "mood": "n"}], "max_tokens": 1, "stream": True}
    _, _, headers = post(server, "/v1/chat/completions", chat | {"stream_options": {"every": 1}})
    assert "messages.mood, stream_options.every" in headers["warning"]
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [5]})):
        assert "colour" in post(server, path, body | {"colour": 1})[2]["warning"]


@pytest.mark.parametrize("name", ["a\r\nx-evil: 1", '\x00é"\\', "k" * 100_000])
def test_hostile_field_names_stay_inside_the_warning(server: RunningServer, name: str) -> None:
    status, _, headers = post(server, "/v1/completions", {"prompt": "a", "max_tokens": 1, name: 1})
    assert status == 200
    assert headers["warning"].isascii()
    assert headers["warning"].count('"') == 2
    assert "x-evil" not in headers


def test_body_over_the_limit(server: RunningServer) -> None:
    status, found, _ = send(server, "POST", "/v1/completions", b" " * (BODY_LIMIT + 1))
    assert status == 413
    assert str(BODY_LIMIT) in found["error"]["message"]


def test_stream_has_ids_and_done(server: RunningServer) -> None:
    body = {"prompt": "Once", "max_tokens": 4, "stream": True, "ignore_eos": True, "return_token_ids": True}
    raw = post(server, "/v1/completions", body)[1]
    assert raw.endswith("data: [DONE]\n\n")
    assert [line for line in raw.splitlines() if line.startswith("id:")] == [f"id: {i}" for i in range(4)]


def test_disconnect_ends_the_work(server: RunningServer) -> None:
    for stream in (True, False):
        place = urlsplit(server.url)
        raw = json.dumps({"prompt": "Once", "max_tokens": 1800, "ignore_eos": True, "stream": stream}).encode()
        with socket.create_connection((place.hostname or "", place.port or 0)) as wire:
            head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(raw)}\r\n\r\n"
            wire.sendall(head.encode() + raw)
            if stream:
                wire.recv(100)
        server.quiet()


def test_a_stream_that_waits_is_dropped_when_its_client_goes() -> None:
    with one_process(max_num_seqs=1) as small, Client(small.target) as client:
        first = client.generate_stream("Once", max_tokens=1900, ignore_eos=True)
        next(first)
        for stream in (True, False):
            place = urlsplit(small.url)
            waiting = http.client.HTTPConnection(place.netloc, timeout=PATIENCE)
            body = json.dumps({"prompt": "Once", "max_tokens": 1800, "ignore_eos": True, "stream": stream})
            waiting.request("POST", "/v1/completions", body)
            small.until(lambda stats: stats.waiting == 1)
            waiting.close()
            small.until(lambda stats: stats.waiting == 0)
            assert small.stats().running == 1
        first.close()  # type: ignore[attr-defined]
        small.quiet()


async def test_a_bug_in_one_of_several_prompts_ends_the_answer() -> None:
    async def good() -> AsyncGenerator[Chunk, None]:
        yield Chunk(0, 0, "a")

    async def bad() -> AsyncGenerator[Chunk, None]:
        yield Chunk(0, 0, "b")
        raise ZeroDivisionError

    async def read() -> None:
        async for _ in _several([good(), bad()], 1):
            continue

    with pytest.raises(ZeroDivisionError):
        await read()


def test_full_queue_is_429_with_a_hint() -> None:
    with one_process(max_num_seqs=1, max_queue_len=1) as small:
        place = urlsplit(small.url)
        body = json.dumps({"prompt": "Once", "max_tokens": 1500, "ignore_eos": True, "stream": True}).encode()
        wires = []
        try:
            refused = None
            for _ in range(4):
                wire = http.client.HTTPConnection(place.netloc, timeout=PATIENCE)
                wires.append(wire)
                wire.request("POST", "/v1/completions", body)
                if len(wires) in (1,):
                    wire.getresponse().read(10)
            statuses = []
            wires[-1].sock.settimeout(5)
            refused = wires[-1].getresponse()
            statuses.append(refused.status)
            assert statuses == [429]
            assert int(refused.headers["retry-after"]) >= 1
            assert b"queue is full" in refused.read()
        finally:
            for wire in wires:
                wire.close()
        small.quiet()


_numbers = st.one_of(
    st.none(),
    st.integers(-5, 3000),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.booleans(),
    st.text(max_size=3),
)
_words = st.text(max_size=40)
_prompts = st.one_of(_words, st.lists(st.integers(-2, 600), max_size=20), st.lists(_words, max_size=3))
_SCALARS = (
    "max_tokens temperature top_p top_k min_p n seed logprobs presence_penalty frequency_penalty repetition_penalty priority"
).split()
_optional: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(_SCALARS, _numbers),
    "stop": st.one_of(st.text(max_size=4), st.lists(st.text(max_size=4), max_size=3)),
    "echo": st.booleans(),
    "stream": st.booleans(),
    "logit_bias": st.dictionaries(st.text("0123456789-x", max_size=3), st.floats(-200, 200), max_size=3),
}
_fields = st.fixed_dictionaries({"prompt": _prompts}, optional=_optional)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=_fields)
def test_generated_requests_get_documented_answers(server: RunningServer, body: dict[str, Any]) -> None:
    if isinstance(body.get("max_tokens"), int) and not isinstance(body["max_tokens"], bool):
        body["max_tokens"] = min(body["max_tokens"], 12)
    else:
        body.setdefault("max_tokens", 5)
    status, found, _ = post(server, "/v1/completions", body)
    assert status in (200, 400), found
    if status == 400:
        assert found["error"]["message"]
    server.quiet()


async def test_a_body_that_stops_coming_is_given_up() -> None:
    parts = [{"type": "http.request", "body": b"half", "more_body": True}]

    async def receive() -> Any:
        return parts.pop() if parts else await asyncio.Event().wait()

    with pytest.raises(HTTPException, match=r"found nothing for 0\.05 s") as caught:
        await _body(Request({"type": "http", "method": "POST", "headers": []}, receive), 0.05)
    assert caught.value.status_code == 408
