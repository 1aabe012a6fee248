"""The official client's ways to call: sync and async, streaming helpers, raw answers, retries, timeouts, many at once."""

import asyncio
import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.lib.streaming.chat import ChunkEvent, ContentDeltaEvent, ContentDoneEvent

from tests.http_calls import opened, sent
from tests.patience import PATIENCE
from tests.router_svc.api.conformance import behaviours
from tests.router_svc.api.conformance.behaviours import QUESTION, chat
from tests.server import RunningServer, one_process


def text(**fields: Any) -> dict[str, Any]:
    """The same as the typed client takes it."""
    body = behaviours.text(**fields)
    return body | {"extra_body": {"ignore_eos": body.pop("ignore_eos")}}


@pytest.fixture(scope="module")
def client(server: RunningServer) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)


def test_the_streaming_helper_gathers_the_whole_answer(client: OpenAI) -> None:
    whole = client.chat.completions.create(**chat(logprobs=True))
    with client.chat.completions.stream(**chat(logprobs=True), stream_options={"include_usage": True}) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == "stop"
    assert final.choices[0].logprobs == whole.choices[0].logprobs
    assert final.usage is not None
    assert whole.usage is not None
    assert final.usage.completion_tokens == whole.usage.completion_tokens
    deltas = [e.delta for e in events if isinstance(e, ContentDeltaEvent)]
    assert "".join(deltas) == whole.choices[0].message.content
    assert all(deltas[1:]), "the first has the role"
    assert sum(isinstance(e, ContentDoneEvent) for e in events) == 1
    assert sum(isinstance(e, ChunkEvent) for e in events) > len(deltas)


async def test_the_async_client_many_at_once(server: RunningServer) -> None:
    async with AsyncOpenAI(base_url=f"{server.url}/v1/", api_key="none", max_retries=0, timeout=PATIENCE) as client:

        async def whole(number: int) -> str:
            answer = await client.completions.create(**text(prompt=f"{number} + {number} ="))
            return answer.choices[0].text

        async def streamed(number: int) -> str:
            stream = await client.completions.create(**text(prompt=f"{number} + {number} ="), stream=True)
            return "".join([chunk.choices[0].text async for chunk in stream])

        numbers = range(12)
        wholes = await asyncio.gather(*map(whole, numbers))
        assert await asyncio.gather(*map(streamed, numbers)) == wholes
        async with client.chat.completions.stream(**chat()) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.content is not None
        assert [model.id async for model in client.models.list()] == ["demo"]


def test_raw_answers_and_request_ids(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**chat(), extra_headers={"X-Request-Id": "mine"})
    assert raw.headers["x-request-id"] == "mine"
    assert raw.parse()._request_id == "mine"
    with client.completions.with_streaming_response.create(**text(stream=True)) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.request_id
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[0][6:])["object"] == "text_completion"
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(**text(n=0))
    assert refused.value.request_id
    assert refused.value.param == "n"
    assert refused.value.type == "invalid_request_error"


def test_fields_of_ours_go_through_extra_body(client: OpenAI) -> None:
    extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.05, "return_token_ids": True, "priority": 1}
    answer = client.chat.completions.create(
        model="demo", messages=QUESTION, max_tokens=4, extra_body=extra | {"request_id": "of-mine"}
    )
    assert answer.id == "of-mine"
    assert len((answer.choices[0].model_extra or {})["token_ids"]) == 4


def test_a_client_that_gives_up_frees_its_place(client: OpenAI, server: RunningServer) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).completions.create(**text(max_tokens=1900))
    server.quiet()
    with client.completions.create(**text(max_tokens=1900), stream=True) as stream:
        next(iter(stream))
    server.quiet()


def test_retries_end_once_there_is_room() -> None:
    with one_process(max_num_seqs=1, max_queue_len=1) as small:
        body = {"prompt": "Once", "ignore_eos": True, "stream": True}
        patient = OpenAI(base_url=f"{small.url}/v1", api_key="none", max_retries=20, timeout=PATIENCE)
        with opened(small, "/v1/completions", body | {"max_tokens": 600}) as running:
            running.readline()
            with sent(small, "/v1/completions", body | {"max_tokens": 2}) as waiting:
                small.until(lambda stats: stats.waiting == 1)
                raw = patient.completions.with_raw_response.create(**text())
                assert raw.retries_taken >= 1, "the queue was full at first"
                waiting.getresponse().read()
            running.read()
        small.quiet()
