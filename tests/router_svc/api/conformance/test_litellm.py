"""litellm against the HTTP face, as an OpenAI-like and as a vLLM-like provider."""

from typing import Any

import pytest

from tests.patience import PATIENCE
from tests.router_svc.api.conformance.behaviours import QUESTION
from tests.router_svc.api.conformance.clients import needs
from tests.server import RunningServer

pytestmark = [pytest.mark.slow, needs("litellm")]


@pytest.fixture(scope="module")
def litellm() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or the import asks the network for prices
        import litellm

        yield litellm


@pytest.fixture
def fields(server: RunningServer) -> dict[str, Any]:
    return {
        "api_base": f"{server.url}/v1", "api_key": "none", "temperature": 0, "num_retries": 0, "max_retries": 0,
        "timeout": PATIENCE,
    }  # fmt: skip


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_a_chat_whole_and_streamed(litellm: Any, fields: dict[str, Any], provider: str) -> None:
    call = {"model": f"{provider}/demo", "messages": QUESTION, **fields}
    whole = litellm.completion(**call)
    message = whole.choices[0].message
    assert message.content.strip() == "42"
    assert "write 2" in message.reasoning_content
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    parts = list(litellm.completion(**call, stream=True, stream_options={"include_usage": True}))
    deltas = [part.choices[0].delta for part in parts if part.choices]
    assert "".join(delta.content or "" for delta in deltas) == message.content
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == message.reasoning_content
    assert [p.choices[0].finish_reason for p in parts if p.choices and p.choices[0].finish_reason] == ["stop"]
    rebuilt = litellm.stream_chunk_builder(parts, messages=QUESTION)
    assert rebuilt.choices[0].message.content == message.content
    assert rebuilt.usage.completion_tokens == whole.usage.completion_tokens


async def test_a_chat_async(litellm: Any, fields: dict[str, Any]) -> None:
    stream = await litellm.acompletion(model="openai/demo", messages=QUESTION, stream=True, **fields)
    assert "".join([part.choices[0].delta.content or "" async for part in stream]).strip() == "42"


def test_a_completion_whole_and_streamed(litellm: Any, fields: dict[str, Any]) -> None:
    call = {"model": "text-completion-openai/demo", "prompt": "Once upon", "max_tokens": 12, **fields}
    whole = litellm.text_completion(**call)
    assert whole.usage.completion_tokens == 12
    parts = list(litellm.text_completion(**call, stream=True))
    assert "".join(part.choices[0].text or "" for part in parts) == whole.choices[0].text


def test_logprobs_and_fields_of_ours(litellm: Any, fields: dict[str, Any]) -> None:
    answer = litellm.completion(
        model="hosted_vllm/demo", messages=QUESTION, max_tokens=3, logprobs=True, top_logprobs=2,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}, "top_k": 1}, **fields,
    )  # fmt: skip
    assert len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens == 3


def test_errors_are_what_agents_look_for(litellm: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(litellm.NotFoundError, match="other"):
        litellm.completion(model="openai/other", messages=QUESTION, **fields)
    with pytest.raises(litellm.BadRequestError, match="top_logprobs"):
        litellm.completion(model="openai/demo", messages=QUESTION, top_logprobs=3, **fields)
    long = [{"role": "user", "content": "w " * 3000}]
    for provider in ("openai", "hosted_vllm"):
        with pytest.raises(litellm.ContextWindowExceededError, match="2047"):
            litellm.completion(model=f"{provider}/demo", messages=long, **fields)
