"""The official openai client, unmodified, against the HTTP face."""

import openai
import pytest
from openai import OpenAI

from tests.server import RunningServer

QUESTION = [{"role": "user", "content": "/think What is 123 + 456?"}]


@pytest.fixture(scope="module")
def client(server: RunningServer) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_chat_answers_with_reasoning_apart(client: OpenAI) -> None:
    done = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0)
    message = done.choices[0].message
    assert message.content is not None
    assert message.content.strip() == "579"
    assert "write 9" in message.model_extra["reasoning"]
    assert done.choices[0].finish_reason == "stop"
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


def test_chat_stream_is_the_same_text(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0).choices[0].message
    content, reasoning, reasons, usage = "", "", [], None
    stream = client.chat.completions.create(
        model="demo", messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reasoning += (choice.delta.model_extra or {}).get("reasoning", "")
            reasons.append(choice.finish_reason)
    assert (content, reasoning) == (whole.content, whole.model_extra["reasoning"])
    assert "<think>" not in content + reasoning
    assert reasons[-1] == "stop"
    assert set(reasons[:-1]) == {None}
    assert usage is not None
    assert usage.completion_tokens > 20


def test_stop_strings_count_in_the_content_only_and_reasoning_in_usage(client: OpenAI) -> None:
    done = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, stop=["carry"])
    message, usage = done.choices[0].message, done.usage
    assert message.content == "579"
    assert "carry" in message.reasoning  # type: ignore[attr-defined]
    assert usage is not None
    assert usage.completion_tokens_details is not None
    assert 10 < (usage.completion_tokens_details.reasoning_tokens or 0) < usage.completion_tokens


def test_reasoning_can_be_left_out_or_switched_off(client: OpenAI) -> None:
    hidden = client.chat.completions.create(
        model="demo", messages=QUESTION, temperature=0, extra_body={"include_reasoning": False}
    )
    assert (hidden.choices[0].message.content, hidden.choices[0].message.reasoning) == ("579", None)  # type: ignore[attr-defined]
    stream = client.chat.completions.create(
        model="demo", messages=QUESTION, temperature=0, stream=True, extra_body={"include_reasoning": False}
    )
    deltas = [chunk.choices[0].delta for chunk in stream]
    assert "".join(delta.content or "" for delta in deltas) == "579"
    assert not any(getattr(delta, "reasoning", None) for delta in deltas)
    off = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, reasoning_effort="none")
    assert off.choices[0].message.reasoning is None  # type: ignore[attr-defined]


def test_no_thinking_by_template_option(client: OpenAI) -> None:
    done = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "What is 2 + 3?"}], temperature=0,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )  # fmt: skip
    assert done.choices[0].message.model_extra["reasoning"] is None
    assert done.usage is not None
    assert done.usage.completion_tokens < 30


def test_content_parts_developer_role_and_max_completion_tokens(client: OpenAI) -> None:
    done = client.chat.completions.create(
        model="demo", max_completion_tokens=7, user="u", metadata={"k": "v"}, store=False,
        messages=[
            {"role": "developer", "content": "You are a careful calculator."},
            {"role": "user", "content": [{"type": "text", "text": "/think "}, {"type": "text", "text": "1+1"}]},
        ],
    )  # fmt: skip
    assert done.choices[0].finish_reason == "length"
    assert done.usage is not None
    assert done.usage.completion_tokens == 7


def test_completions_n_seed_stop_and_logprobs(client: OpenAI) -> None:
    fields = {"model": "demo", "prompt": "Once upon a time", "max_tokens": 24, "seed": 7, "temperature": 1.0}
    first = client.completions.create(n=2, logprobs=2, **fields)
    again = client.completions.create(n=2, **fields)
    assert [c.text for c in first.choices] == [c.text for c in again.choices]
    assert first.choices[0].text != first.choices[1].text
    logprobs = first.choices[0].logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or []) == first.choices[0].text
    assert all(value is not None and value <= 0 for value in logprobs.token_logprobs or [])
    word = first.choices[0].text.split()[2]
    cut = client.completions.create(stop=[word], **fields).choices[0]
    assert cut.finish_reason == "stop"
    assert word not in cut.text
    assert first.choices[0].text.startswith(cut.text)


def test_echo_with_prompt_logprobs_and_prompt_lists(client: OpenAI) -> None:
    done = client.completions.create(model="demo", prompt="def add", max_tokens=3, echo=True, logprobs=1, temperature=0)
    choice = done.choices[0]
    assert choice.text.startswith("def add")
    assert choice.logprobs is not None
    assert "".join(choice.logprobs.tokens or []) == choice.text
    several = client.completions.create(model="demo", prompt=["def add", "def sub"], max_tokens=3, n=2, temperature=0)
    assert [c.index for c in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == several.choices[1].text


def test_chat_logprobs(client: OpenAI) -> None:
    done = client.chat.completions.create(
        model="demo", messages=QUESTION, max_tokens=4, logprobs=True, top_logprobs=3, temperature=0
    )
    content = done.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None
    assert len(content) == 4
    assert len(content[0].top_logprobs) == 3


def test_bytes_and_offsets_of_characters_in_several_tokens(client: OpenAI) -> None:
    text = "Grüße € 😀 so"
    done = client.completions.create(model="demo", prompt=text, max_tokens=1, echo=True, logprobs=1, temperature=0)
    logprobs = done.choices[0].logprobs
    assert logprobs is not None
    for token, offset in zip(logprobs.tokens or [], logprobs.text_offset or [], strict=True):
        assert token == "\ufffd" or done.choices[0].text[offset : offset + len(token)] == token
    bias = {str(token): 100 for token in client_ids(client, "€")[:1]}
    chat = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "x"}], max_tokens=1, logprobs=True, logit_bias=bias
    )
    content = chat.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None
    assert content[0].bytes == ["€".encode()[0]]


def client_ids(client: OpenAI, text: str) -> list[int]:
    """Ids of a text, from an echoed prompt."""
    done = client.completions.create(model="demo", prompt=text, max_tokens=1, extra_body={"return_token_ids": True})
    ids: list[int] = (done.choices[0].model_extra or {})["prompt_token_ids"]
    return ids


def test_streams_of_several_prompts_are_the_whole_answers(client: OpenAI) -> None:
    fields = {"model": "demo", "prompt": ["Once upon", "def f"], "max_tokens": 9, "logprobs": 2, "echo": True, "n": 2, "seed": 1,
              "stop": ["e ", "("]}  # fmt: skip
    whole = client.completions.create(**fields)  # type: ignore[call-overload]
    texts: dict[int, str] = {}
    offsets: dict[int, list[int]] = {}
    reasons: dict[int, str] = {}
    for event in client.completions.create(stream=True, stream_options={"include_usage": True}, **fields):  # type: ignore[call-overload]
        for choice in event.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            offsets.setdefault(choice.index, []).extend(choice.logprobs.text_offset)
            reasons |= {choice.index: choice.finish_reason} if choice.finish_reason else {}
    assert event.usage == whole.usage
    assert [texts[c.index] for c in whole.choices] == [c.text for c in whole.choices]
    assert [offsets[c.index] for c in whole.choices] == [c.logprobs.text_offset for c in whole.choices]
    assert [reasons[c.index] for c in whole.choices] == [c.finish_reason for c in whole.choices]


def test_prompts_as_ids_and_their_ids_back(client: OpenAI) -> None:
    done = client.completions.create(
        model="demo", prompt=[[20, 30], [40]], max_tokens=3, extra_body={"return_token_ids": True, "ignore_eos": True}
    )
    extra = [choice.model_extra or {} for choice in done.choices]
    assert [e["prompt_token_ids"] for e in extra] == [[20, 30], [40]]
    assert [len(e["token_ids"]) for e in extra] == [3, 3]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[5], [99999]]}, "99999"),
        ({"max_tokens": -1}, "1 to 2147483647"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"seed": 2**70}, "seed"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": [5] * 2048, "max_tokens": 1}, "2047"),
        ({"prompt": [5] * 2047, "max_tokens": 2}, "2 beside 2047 prompt tokens, expected at most 1"),
    ],
)
def test_wrong_completions_are_bad_requests(client: OpenAI, fields: dict[str, object], named: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": "demo", "prompt": "a", "max_tokens": 2, **fields})  # type: ignore[call-overload]
    assert named in caught.value.message


def test_a_prompt_that_leaves_room_for_one_token(client: OpenAI) -> None:
    for limit in ({}, {"max_tokens": 1}):
        done = client.completions.create(model="demo", prompt=[5] * 2047, extra_body={"ignore_eos": True}, **limit)
        assert done.usage is not None
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (2047, 1)
        assert done.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 99}, "logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "role"),
    ],
)
def test_wrong_fields_are_named(client: OpenAI, fields: dict[str, object], named: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "demo", "messages": QUESTION, **fields})  # type: ignore[call-overload]
    assert named in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=QUESTION)  # type: ignore[arg-type]


def test_closing_a_stream_frees_its_blocks(client: OpenAI, server: RunningServer) -> None:
    stream = client.completions.create(
        model="demo", prompt="Once", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    server.quiet()
