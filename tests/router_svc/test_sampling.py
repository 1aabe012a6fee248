"""The table of sampling parameters, and that every face has what stands in it: gRPC, HTTP, client, command line."""

import inspect
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.cli.generate import generate
from router_svc.api.calls import ApiError
from router_svc.api.limits import ServiceLimits, check_sampling, resolve_sampling
from router_svc.api.openai.bodies import ChatBody, CompletionBody
from router_svc.api.openai.fields import NO_EFFECT, REFUSED_OF_CHATS, REFUSED_OF_COMPLETIONS
from router_svc.make_arguments import source
from router_svc.models.generation import GenerationDefaults
from router_svc.proto import tokenyard_pb2 as pb
from router_svc.sampling import PARAMETERS, Parameter, Sampling
from tests.source import ROOT

LIMITS = ServiceLimits(max_model_len=100, vocab_size=50)
NUMBERS = [p for p in PARAMETERS if p.kind in ("int", "float")]


def resolve(given: dict[str, Any], prompt_len: int = 10, **names: str) -> Sampling:
    check_sampling(given, LIMITS, names)
    return resolve_sampling(given, GenerationDefaults((3,), temperature=0.5, top_k=7), LIMITS, prompt_len, "me", names)


def test_the_proto_has_every_parameter_with_its_type() -> None:
    field = pb.Sampling.DESCRIPTOR.fields_by_name
    assert set(field) == {p.name for p in PARAMETERS}
    kinds = {"bool": "bool", "float": "double", "strings": "string", "ids": "int32", "biases": "message"}
    for p in PARAMETERS:
        found = field[p.name]
        name = {
            found.TYPE_BOOL: "bool", found.TYPE_DOUBLE: "double", found.TYPE_STRING: "string", found.TYPE_INT32: "int32",
            found.TYPE_INT64: "int64", found.TYPE_MESSAGE: "message",
        }[found.type]  # fmt: skip
        wide = p.high is not None and p.high > 2**31
        assert name == ("int64" if wide else kinds.get(p.kind, "int32")), p.name
        assert found.is_repeated == (p.kind in ("strings", "ids", "biases"))
        assert found.is_repeated or found.has_presence, "unset and 0 differ"


def test_the_keyword_arguments_are_what_the_table_gives() -> None:
    assert source() == (ROOT / "router_svc/sampling_arguments.py").read_text(), "run `make proto`"


@pytest.mark.slow
def test_a_type_checker_sees_a_wrong_argument(tmp_path: Path) -> None:
    wrong = "from router_svc.client import Client\nClient().generate('x', max_tokens='3')\nClient().chat('x', tempature=1.0)\n"
    flags = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent", "--cache-dir", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "mypy", *flags, "-c", wrong], cwd=ROOT, capture_output=True, text=True)
    assert 'incompatible type "str"; expected "int | None"' in done.stdout
    assert 'Unexpected keyword argument "tempature"' in done.stdout


def test_bodies_and_commands_have_every_parameter() -> None:
    for body in (ChatBody, CompletionBody):
        assert {p.name for p in PARAMETERS} <= set(body.model_fields)
    assert {p.name for p in PARAMETERS if p.flag} <= set(inspect.signature(generate).parameters)


@pytest.mark.parametrize("p", NUMBERS, ids=lambda p: p.name)
def test_numbers_are_taken_up_to_their_bounds(p: Parameter) -> None:
    assert p.low is not None
    assert p.high is not None
    step = 1 if p.kind == "int" else 1e-6
    fitting = p.name not in ("max_tokens", "min_tokens")  # which the context bounds further
    for value in (p.low + step * p.open_low, p.high):
        check_sampling({p.name: value}, LIMITS, {})
        assert not fitting or getattr(resolve({p.name: value}), p.name) == (
            max(value, 0) if p.name == "top_k" else value
        )
    for value in (p.low - step * (not p.open_low), p.high + step, *([math.nan] if p.kind == "float" else [])):
        with pytest.raises(ApiError, match=r"^caller's: found .*, expected a number"):
            check_sampling({p.name: value}, LIMITS, {p.name: "caller's"})


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"stop": ["x"] * 65}, "stop: found 65 strings, expected at most 64"),
        ({"bad_words": ["x" * 1025]}, "bad_words: found a string of 1025 characters, expected 1 to 1024"),
        ({"stop_token_ids": [50]}, "stop_token_ids: found token id 50, expected ids from 0 to 49"),
        ({"allowed_token_ids": []}, "allowed_token_ids: found 0 ids, expected at least 1"),
        ({"logit_bias": {3: 101.0}}, r"logit_bias\[3\]: found 101, expected a number from -100 to 100"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias: found token id -1"),
    ],
)
def test_lists_are_bounded(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ApiError, match=named):
        check_sampling(given, LIMITS, {})


def test_what_is_unset_is_the_models_or_ours() -> None:
    found = resolve({})
    assert (found.temperature, found.top_k, found.max_tokens, found.n) == (0.5, 7, 90, 1)
    assert found.seed == resolve({}).seed != resolve_sampling({}, GenerationDefaults(), LIMITS, 10, "you", {}).seed
    assert found.end_ids == (3,)
    assert resolve({"ignore_eos": True, "stop_token_ids": [4]}).end_ids == (4,)
    assert resolve({"stop_token_ids": [4]}).end_ids == (4, 3)
    assert resolve({"logit_bias": {4: 1.5}, "top_k": -1}).logit_bias == ((4, 1.5),)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_tokens": 91}, "limit: found 91 beside 10 prompt tokens, expected at most 90"),
        ({"min_tokens": 91, "max_tokens": 90}, "min_tokens: found 91 beside 10 prompt tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, r"min_tokens: found 5, expected at most limit \(4\)"),
    ],
)
def test_the_context_bounds_the_answer(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        resolve(given, max_tokens="limit")
    exceeded = "maximum context length is 100 tokens" in caught.value.message
    assert (caught.value.reason == "context_length_exceeded") == exceeded == ("beside" in words)


def test_no_field_is_declared_and_refused() -> None:
    for body, refused in ((ChatBody, REFUSED_OF_CHATS), (CompletionBody, REFUSED_OF_COMPLETIONS)):
        assert not set(body.model_fields) & (set(refused) | NO_EFFECT)
        assert not set(refused) & NO_EFFECT


# vllm/entrypoints/openai/{completion,chat_completion}/protocol.py at 002032ee2b18, and openai-python 3.54.0.
_SHARED = """model frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream stream_options temperature
top_p user use_beam_search top_k min_p repetition_penalty watermarking length_penalty stop_token_ids
include_stop_str_in_output ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens
truncation_side prompt_logprobs logprob_token_ids allowed_token_ids bad_words echo add_special_tokens response_format
structured_outputs priority request_id session_id return_tokens_as_token_ids return_token_ids routed_experts_prompt_start
return_token_offsets return_mm_kwargs cache_salt kv_transfer_params ec_transfer_params vllm_xargs repetition_detection
thinking_token_budget stream_interval""".split()
_OF_COMPLETIONS = "prompt suffix prompt_embeds best_of".split()
_OF_CHATS = """messages top_logprobs max_completion_tokens tools tool_choice reasoning_effort include_reasoning
parallel_tool_calls add_generation_prompt continue_final_message documents chat_template chat_template_kwargs
media_io_kwargs mm_processor_kwargs return_prompt_text audio function_call functions metadata modalities moderation
prediction prompt_cache_key prompt_cache_options prompt_cache_retention safety_identifier service_tier store verbosity
web_search_options""".split()


@pytest.mark.parametrize(
    ("body", "names"), [(CompletionBody, _SHARED + _OF_COMPLETIONS), (ChatBody, _SHARED + _OF_CHATS)]
)
def test_every_field_of_the_others_has_a_fate(body: Any, names: list[str]) -> None:
    known = set(body.model_fields) | body.refused.keys() | NO_EFFECT
    assert not set(names) - known


@pytest.mark.slow
def test_the_official_library_has_no_further_fields() -> None:
    chat = pytest.importorskip("openai.types.chat.completion_create_params", reason="the extra `conformance`")
    text = pytest.importorskip("openai.types.completion_create_params", reason="the extra `conformance`")
    for body, kind in ((ChatBody, chat), (CompletionBody, text)):
        known = set(body.model_fields) | body.refused.keys() | NO_EFFECT
        assert not set(kind.CompletionCreateParamsBase.__annotations__) - known


def test_the_command_line_names_a_wrong_value() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli.main", "generate", "x", "--top-k", "-2"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--top-k" in done.stderr
