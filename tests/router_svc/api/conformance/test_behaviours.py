"""The table of behaviours against the server, whole and streamed, on the small model and on other families' tokenizers."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from router_svc.api.openai.bodies import ChatBody
from router_svc.demo_model.path import checkpoint_path
from router_svc.text.chat import ChatTemplate
from tests import checkpoints
from tests.http_calls import post
from tests.router_svc.api.conformance.behaviours import BEHAVIOURS, CHAT, REFUSALS, TEXT, Behaviour, Refusal, says, text
from tests.server import RunningServer, one_process


def stand(answer: Any, place: str) -> Any:
    """What stands at a place of the answer."""
    for step in place.split("."):
        answer = answer[int(step)] if isinstance(answer, list) else answer[step]
    return answer


def joined(raw: str) -> dict[str, Any]:
    """A stream put together to what the whole answer would be."""
    assert raw.endswith("data: [DONE]\n\n"), raw[-300:]
    events = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")]
    assert len({(e["id"], e["model"], e["created"]) for e in events}) == 1
    assert events[-1]["choices"] == []
    choices: dict[int, dict[str, Any]] = {}
    for event in events[:-1]:
        assert event.get("usage") is None
        for part in event["choices"]:
            delta = part.get("delta", {"text": part.get("text")})
            own = choices.setdefault(part["index"], {"text": "", "reasoning": "", "finish_reason": None, "ids": []})
            assert own["finish_reason"] is None, "a delta after the end"
            own["text"] += delta.get("text") or delta.get("content") or ""
            own["reasoning"] += delta.get("reasoning") or ""
            own["finish_reason"] = part["finish_reason"]
            own["ids"] += part.get("token_ids", [])
    return {"choices": [choices[n] for n in sorted(choices)], "usage": events[-1]["usage"]}


def as_streamed(answer: dict[str, Any]) -> dict[str, Any]:
    """A whole answer in the form of `joined`."""
    choices = []
    for choice in answer["choices"]:
        message = choice.get("message", {"content": choice.get("text")})
        choices.append(
            {
                "text": message["content"], "reasoning": message.get("reasoning") or "",
                "finish_reason": choice["finish_reason"], "ids": choice.get("token_ids", []),
            }
        )  # fmt: skip
    return {"choices": choices, "usage": answer["usage"]}


def uncached(usage: dict[str, Any]) -> dict[str, Any]:
    """What two equal requests have in common."""
    return {key: usage[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")}


def both(server: RunningServer, behaviour: Behaviour) -> tuple[dict[str, Any], dict[str, Any]]:
    """The whole answer, and the streamed one put together."""
    status, whole, _ = post(server, behaviour.path, behaviour.body)
    assert status == 200, whole
    streaming = {**behaviour.body, "stream": True, "stream_options": {"include_usage": True}}
    status, raw, _ = post(server, behaviour.path, streaming)
    assert status == 200, raw
    return whole, joined(raw)


def check_stream(whole: dict[str, Any], streamed: dict[str, Any], varies: bool) -> None:
    wanted = as_streamed(whole)
    if varies:
        assert streamed["choices"] != wanted["choices"]
        return
    assert streamed["choices"] == wanted["choices"]
    assert uncached(streamed["usage"]) == uncached(wanted["usage"])


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda b: b.name)
def test_behaviours(server: RunningServer, behaviour: Behaviour) -> None:
    whole, streamed = both(server, behaviour)
    for place, expected in behaviour.expected.items():
        found = stand(whole, place)
        assert expected(found) if callable(expected) else found == expected, (place, found)
    check_stream(whole, streamed, behaviour.varies)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda r: r.name)
def test_refusals(server: RunningServer, refusal: Refusal) -> None:
    bodies = [refusal.body]
    if isinstance(refusal.body, dict) and "stream_options" not in refusal.body:
        bodies.append({**refusal.body, "stream": True})
    for body in bodies:
        status, found, headers = post(server, refusal.path, body)
        assert (status, headers["content-type"]) == (refusal.status, "application/json")
        error = found["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["code"], str)
        exceeded = "maximum context length is 2048 tokens" in error["message"]
        assert (error["code"] == "context_length_exceeded") == exceeded
        missing = [word for word in refusal.named if word not in error["message"]]
        assert not missing, error["message"]
        assert "\n" not in error["message"]
    assert post(server, TEXT, text())[0] == 200, "the server goes on"


@pytest.mark.parametrize(
    ("options", "counted"),
    [
        (None, []),
        ({}, []),
        ({"include_usage": False}, []),
        ({"include_usage": True}, [5]),
        ({"continuous_usage_stats": True}, [1, 2, 3, 4, 5]),
        ({"continuous_usage_stats": True, "include_usage": True}, [1, 2, 3, 4, 5, 5]),
    ],
)
def test_usage_of_streams(server: RunningServer, options: dict[str, Any] | None, counted: list[int]) -> None:
    raw = post(server, TEXT, text(stream=True, stream_options=options, logit_bias={"81": 100}))[1]
    events = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")]
    assert [e["usage"]["completion_tokens"] for e in events if e.get("usage")] == counted
    assert len({e["usage"]["prompt_tokens"] for e in events if e.get("usage")}) <= 1


def test_tokens_as_the_vocabulary_spells_them(server: RunningServer) -> None:
    body = {"prompt": "a cat", "add_special_tokens": False}
    plain = post(server, "/tokenize", body)[1]
    named = post(server, "/tokenize", {**body, "return_token_strs": True})[1]
    pieces = PreTrainedTokenizerFast.from_pretrained(checkpoint_path()).convert_ids_to_tokens(named["tokens"])
    assert named == {**plain, "token_strs": pieces}
    assert plain["token_strs"] is None


HISTORY = [
    ({"content": ""}, ""),
    ({"content": None}, ""),
    ({}, ""),
    ({"content": None, "refusal": "I won't."}, "I won't."),
    (
        {"content": "So.", "refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": []},
        "So.",
    ),
    ({"content": [{"type": "refusal", "refusal": "No."}]}, "No."),
    ({"content": [{"type": "text", "text": "a"}, {"type": "output_text", "text": "b"}]}, "a\nb"),
    ({"content": "So.", "reasoning": "Hm."}, "So."),
    ({"content": "So.", "reasoning_content": "Hm."}, "So."),
]


@pytest.mark.parametrize(("turn", "said"), HISTORY)
def test_history_as_clients_keep_it(server: RunningServer, turn: dict[str, Any], said: str) -> None:
    def prompt(assistant: dict[str, Any]) -> Any:
        turns = [*says(("user", "a")), {"role": "assistant", **assistant}, *says(("user", "b"))]
        status, found, headers = post(server, "/tokenize", {"messages": turns})
        assert status == 200, found
        assert headers["warning"] is None
        return found["tokens"]

    assert prompt(turn) == prompt({"content": said})


def test_templates_see_the_reasoning_of_a_history() -> None:
    template = "{% for m in messages %}{{ m.reasoning }}{{ m.reasoning_content }}{{ m.name }}{% endfor %}"
    body = ChatBody.model_validate({"messages": [{"role": "assistant", "reasoning": "Hm.", "name": "n"}]})
    (turn,) = body.turns()
    found = ChatTemplate(template, {}, "").render([{**turn.extra, "role": turn.role, "content": turn.content}], {})
    assert found == "Hm.Hm.n"


def test_a_prompt_that_was_there_before_is_cached(server: RunningServer) -> None:
    prompt = [7, 11, 13, 17] * 40
    cached = [
        post(server, TEXT, text(prompt=prompt))[1]["usage"]["prompt_tokens_details"]["cached_tokens"] for _ in "ab"
    ]
    assert cached == [0, 144], "whole blocks before the last token"


@pytest.fixture(scope="module", params=checkpoints.ARCHITECTURES)
def family(request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    with one_process(checkpoints.shared(request.param), max_model_len=512) as running:
        yield running


@pytest.mark.slow
def test_streams_of_other_families_are_their_whole_answers(family: RunningServer) -> None:
    """Random weights write broken UTF-8 and specials, which the small model hardly does."""
    for seed in range(12):
        for path, body in (
            (TEXT, {"prompt": "Once 🦙", "logprobs": 2, "n": 2, "echo": seed % 2 == 0}),
            (CHAT, {"messages": [{"role": "user", "content": f"{seed}"}]}),
        ):
            fields = {
                "max_tokens": 60,
                "seed": seed,
                "temperature": 1.0,
                "return_token_ids": True,
                "stop": ["zz", "\ufffd\ufffd"],
            }
            whole, streamed = both(family, Behaviour("", "", path, body | fields))
            check_stream(whole, streamed, varies=False)
            assert all(len(c["ids"]) <= 60 for c in streamed["choices"])
