"""Generated gRPC requests against a live server: documented codes only, named errors, and nothing held afterwards."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router_svc.proto import tokenyard_pb2 as pb
from router_svc.proto import tokenyard_pb2_grpc as rpc
from tests.server import RunningServer

_DOCUMENTED = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.DEADLINE_EXCEEDED}
_INT32 = st.integers(-(2**31), 2**31 - 1)
_DOUBLES = st.one_of(st.floats(), st.sampled_from([0.0, 5e-324, 1e-300, 1e-30, 0.5, 1.0, 2.0]))
_WORDS = st.text(max_size=30)
_USER = [pb.ChatMessage(role="user", content="x")]


def _near(low: int, high: int) -> st.SearchStrategy[int]:
    """Mostly sensible whole numbers, sometimes any."""
    return st.one_of(st.integers(low, high), st.integers(low, high), _INT32)


@st.composite
def _mixed(draw: st.DrawFn, sane: dict[str, Any], wild: dict[str, Any]) -> dict[str, Any]:
    """Some fields that are right, and often one that may be anything."""
    fields = draw(st.fixed_dictionaries({}, optional=sane))
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(wild)))
        fields[name] = draw(wild[name])
    return fields


_SANE = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.1, 1),
    "top_k": st.integers(-1, 600),
    "min_p": st.floats(0, 1),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "stop": st.lists(st.text(min_size=1, max_size=4), max_size=3),
    "stop_token_ids": st.lists(st.integers(0, 511), max_size=2),
    "repetition_penalty": st.floats(0.1, 10),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "ignore_eos": st.booleans(),
    "logprobs": st.integers(0, 20),
    "n": st.integers(1, 4),
}
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_WILD = {
    **dict.fromkeys(_NUMBERS, _DOUBLES),
    **dict.fromkeys(("top_k", "logprobs"), _INT32),
    "max_tokens": st.one_of(st.integers(-(2**31), 0), st.integers(2048, 2**31 - 1)),
    "n": st.one_of(st.integers(-(2**31), 4), st.integers(65, 2**31 - 1)),
    "stop": st.lists(st.text(max_size=2000), max_size=20),
    "stop_token_ids": st.lists(_INT32, max_size=2),
}
_SAMPLING = st.builds(
    lambda fields, tokens: pb.Sampling(**{"max_tokens": tokens, **fields}), _mixed(_SANE, _WILD), st.integers(1, 12)
)
_AROUND = _mixed(
    {"request_id": st.text(max_size=20), "priority": _INT32, "timeout": st.floats(0.001, 5), "sampling": _SAMPLING},
    {"request_id": st.text(max_size=300), "resume_from": _INT32, "timeout": _DOUBLES},
).map(lambda fields: {"sampling": pb.Sampling(max_tokens=3), **fields})
_IDS = st.lists(st.one_of(st.integers(0, 511), st.integers(0, 511), _near(-1, 513)), max_size=40)
_INPUT = st.one_of(
    _WORDS.map(lambda text: {"text": text}),
    _IDS.map(lambda ids: {"token_ids": pb.TokenIds(ids=ids)}),
    _WORDS.map(lambda text: {"text": f"a{text}"}),
    st.just({}),
)
_GENERATE = st.builds(lambda given, around: pb.GenerateRequest(**given, **around), _INPUT, _AROUND)
_ROLES = st.sampled_from(["user", "user", "assistant", "system", "developer", "tool"])
_MESSAGE = st.builds(pb.ChatMessage, role=st.one_of(*[_ROLES] * 7, st.text(max_size=9)), content=_WORDS)
_JSON = st.sampled_from(
    ["{}", "[1]", "{", '{"enable_thinking": true}', '{"enable_thinking": "no"}', '{"messages": 3}', "[" * 200_000,
     '{"tools": [{}]}', '{"add_generation_prompt": null}', '{"raise_exception": 1, "bos_token": {}}', '"\\ud800"',
     '{"bos_token": "\\ud800"}', '{"x": 1e999}', "9" * 5000],
)  # fmt: skip
_MESSAGES = st.one_of(*[st.lists(_MESSAGE, min_size=1, max_size=4)] * 7, st.just([]))
_OPTIONS = st.one_of(*[st.just("")] * 4, _JSON)
_CHAT = st.builds(
    lambda messages, thinking, options, around: pb.ChatRequest(
        messages=messages, enable_thinking=thinking, chat_template_kwargs=options, **around
    ),
    _MESSAGES, st.none() | st.booleans(), _OPTIONS, _AROUND,
)  # fmt: skip


def outcome(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    """The call's code and details; a stream is read to its end."""
    try:
        answer = call()
        if isinstance(answer, grpc.Call):
            list(answer)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=st.one_of(_GENERATE, _CHAT), stream=st.booleans())
def test_generated_requests_get_documented_codes(server: RunningServer, request: Any, stream: bool) -> None:
    with grpc.insecure_channel(server.target) as channel:
        stub = rpc.InferenceStub(channel)
        if isinstance(request, pb.ChatRequest):
            method = stub.ChatStream if stream else stub.Chat
        else:
            method = stub.GenerateStream if stream else stub.Generate
        code, details = outcome(lambda: method(request))
    assert code in _DOCUMENTED, (code, details)
    assert details or code == grpc.StatusCode.OK
    server.quiet()


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (pb.ChatRequest(messages=_USER, chat_template_kwargs="[" * 200_000), "chat_template_kwargs"),
        (pb.ChatRequest(messages=_USER, chat_template_kwargs='{"a":' * 200_000), "chat_template_kwargs"),
        (pb.ChatRequest(messages=_USER, chat_template_kwargs='{"bos_token": "\\ud800"}'), "chat_template_kwargs"),
        (pb.ChatRequest(messages=_USER, chat_template_kwargs='{"enable_thinking": "no"}'), "enable_thinking"),
        (pb.ChatRequest(messages=_USER, chat_template_kwargs='{"messages": []}'), "messages"),
        (pb.ChatRequest(messages=[pb.ChatMessage(role="w" * 20_000, content="x")]), "messages[0].role"),
        (pb.ChatRequest(messages=[pb.ChatMessage(role="é" * 20_000, content="x")]), "messages[0].role"),
        (pb.GenerateRequest(text="a", request_id="é" * 257), "request_id"),
        (pb.GenerateRequest(text="a " * 100_000), "text: found 200000 characters"),
        (pb.GenerateRequest(text="a " * 50_000), "text: found 50001 tokens"),
        (pb.TokenizeRequest(text="a" * 200_000), "text: found 200000 characters"),
        (pb.DetokenizeRequest(token_ids=[5] * 200_000), "token_ids: found 200000 ids"),
    ],
)
def test_hostile_values_are_named(server: RunningServer, request_: Any, named: str) -> None:
    with grpc.insecure_channel(server.target) as channel:
        stub = rpc.InferenceStub(channel)
        method = getattr(stub, type(request_).__name__.removesuffix("Request"))
        code, details = outcome(lambda: method(request_))
    assert code == grpc.StatusCode.INVALID_ARGUMENT, details
    assert named in details


@pytest.mark.parametrize("name", ["Generate", "GenerateStream", "Chat", "ChatStream", "Tokenize", "Detokenize"])
@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b"\x1a\x02\xff\xfe\x0a\x01\xff", b"\x0a\x7fshort"])
def test_bytes_that_are_no_message_are_invalid(server: RunningServer, name: str, raw: bytes) -> None:
    with grpc.insecure_channel(server.target) as channel:
        kind = channel.unary_stream if name.endswith("Stream") else channel.unary_unary
        code, details = outcome(lambda: kind(f"/tokenyard.v1.Inference/{name}")(raw))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "protobuf" in details


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), 1e9, 0.0, -1.0])
def test_a_wrong_timeout_is_refused_beside_a_deadline_too(server: RunningServer, timeout: float) -> None:
    with grpc.insecure_channel(server.target) as channel:
        request = pb.GenerateRequest(text="a", timeout=timeout, sampling=pb.Sampling(max_tokens=1))
        code, details = outcome(lambda: rpc.InferenceStub(channel).Generate(request, timeout=30))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "timeout" in details


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=_WORDS, ids=st.lists(_near(-1, 513), max_size=20), special=st.none() | st.booleans())
def test_tokens_there_and_back(server: RunningServer, text: str, ids: list[int], special: bool | None) -> None:
    with grpc.insecure_channel(server.target) as channel:
        stub = rpc.InferenceStub(channel)
        assert (
            outcome(lambda: stub.Tokenize(pb.TokenizeRequest(text=text, add_special_tokens=special)))[0] in _DOCUMENTED
        )
        assert outcome(lambda: stub.Detokenize(pb.DetokenizeRequest(token_ids=ids)))[0] in _DOCUMENTED
