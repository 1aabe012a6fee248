"""What the request suites of other servers check, as data: bodies, and what their answers must be.

Written after reading vLLM's tests/entrypoints/openai (completion, chat_completion, basic), SGLang's test/srt/openai_server
and llama.cpp's tools/server/tests/unit, as they were in November 2026; `peers` says which of them check the like.

A behaviour holds a body and places in its answer (steps with dots between them) with a value or a question about it.
Of every behaviour that is answered with 200 the tests ask for the stream, too, which must come to the same answer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
Expected = dict[str, Any | Callable[[Any], bool]]
QUESTION = [{"role": "user", "content": "/think What is 12 + 30?"}]
IMAGE = [{"type": "image_url", "image_url": {"url": "http://localhost/x.png"}}]
IDS = [20, 30, 40, 50, 60]


@dataclass(frozen=True)
class Behaviour:
    """expected: by place in the answer; a function is asked about what stands there. varies: the text is drawn anew by
    every request, so that a second answer is another."""

    name: str
    peers: str
    path: str
    body: dict[str, Any]
    expected: Expected = field(default_factory=dict)
    varies: bool = False


@dataclass(frozen=True)
class Refusal:
    """named: the words of which each stands in the error's message."""

    name: str
    peers: str
    path: str
    body: Any
    named: tuple[str, ...]
    status: int = 400


def count(number: int) -> Callable[[Any], bool]:
    """So many."""
    return lambda found: len(found) == number


def text(**fields: Any) -> dict[str, Any]:
    """A greedy completion of five tokens unless the fields say otherwise."""
    return {
        "model": "demo",
        "prompt": "Once upon a time",
        "max_tokens": 5,
        "temperature": 0,
        "ignore_eos": True,
        **fields,
    }


def chat(**fields: Any) -> dict[str, Any]:
    """A greedy answer to a sum unless the fields say otherwise."""
    return {"model": "demo", "messages": QUESTION, "temperature": 0, **fields}


def says(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    """Messages of (role, content)."""
    return [{"role": role, "content": content} for role, content in turns]


BEHAVIOURS = [
    Behaviour("a completion", "vLLM, llama.cpp", TEXT, text(), {
        "object": "text_completion", "model": "demo", "id": lambda v: v.startswith("cmpl-"), "created": lambda v: v > 1e9,
        "choices": count(1), "choices.0.index": 0, "choices.0.finish_reason": "length", "choices.0.logprobs": None,
        "choices.0.text": lambda v: len(v) >= 5, "usage.completion_tokens": 5,
        "usage": lambda v: v["total_tokens"] == v["prompt_tokens"] + 5,
        "usage.prompt_tokens_details.cached_tokens": lambda v: v >= 0,
    }),
    Behaviour("a chat", "vLLM, SGLang, llama.cpp", CHAT, chat(), {
        "object": "chat.completion", "id": lambda v: v.startswith("chatcmpl-"), "choices": count(1),
        "choices.0.message.role": "assistant", "choices.0.message.content": lambda v: v.strip() == "42",
        "choices.0.finish_reason": "stop", "choices.0.logprobs": None,
    }),
    Behaviour("a prompt of ids", "vLLM, SGLang", TEXT, text(prompt=IDS), {"usage.prompt_tokens": 5}),
    Behaviour("a batch of texts", "vLLM, SGLang", TEXT, text(prompt=["Once", "Once", "def f"]), {
        "choices": lambda v: [c["index"] for c in v] == [0, 1, 2] and v[0]["text"] == v[1]["text"] != v[2]["text"],
        "usage.completion_tokens": 15,
    }),
    Behaviour("a batch of ids", "vLLM, llama.cpp", TEXT, text(prompt=[IDS, IDS]), {
        "choices": lambda v: len(v) == 2 and v[0]["text"] == v[1]["text"], "usage.prompt_tokens": 10,
    }),
    Behaviour("several choices of several prompts", "SGLang", TEXT, text(
        prompt=["Once", "def"], n=3, temperature=1, seed=4, max_tokens=40,
    ), {
        "choices": lambda v: [c["index"] for c in v] == list(range(6)) and len({c["text"] for c in v[:3]}) == 3,
    }),
    Behaviour("logprobs of no alternative", "vLLM", TEXT, text(logprobs=0), {
        "choices.0.logprobs.token_logprobs": lambda v: len(v) == 5 and all(p <= 0 for p in v),
        "choices.0.logprobs.tokens": count(5), "choices.0.logprobs.text_offset": lambda v: v == sorted(v) and v[0] == 0,
    }),
    Behaviour("logprobs of five alternatives", "vLLM, SGLang", TEXT, text(logprobs=5, temperature=1, seed=8), {
        "choices.0.logprobs.top_logprobs": lambda v: all(5 <= len(top) <= 6 for top in v),
        "choices.0": lambda v: "".join(v["logprobs"]["tokens"]) == v["text"],
    }),
    Behaviour("echo", "vLLM, SGLang", TEXT, text(echo=True, logprobs=1), {
        "choices.0.text": lambda v: v.startswith("Once upon a time"),
        "choices.0.logprobs": lambda v: v["token_logprobs"][0] is None and None not in v["token_logprobs"][1:],
        "choices.0": lambda v: "".join(v["logprobs"]["tokens"]) == v["text"],
    }),
    Behaviour("a chat's logprobs", "vLLM, llama.cpp", CHAT, chat(logprobs=True, top_logprobs=10, max_tokens=3), {
        "choices.0.logprobs.content": lambda v: len(v) == 3 and all(len(e["top_logprobs"]) >= 10 for e in v),
        "choices.0.logprobs.content.0.top_logprobs": lambda v: v == sorted(v, key=lambda e: -e["logprob"]),
        "choices.0.logprobs.content.0": lambda v: bytes(v["bytes"]).decode() == v["token"],
    }),
    Behaviour("a chat's logprobs without alternatives", "vLLM", CHAT, chat(logprobs=True, top_logprobs=0, max_tokens=3), {
        "choices.0.logprobs.content": lambda v: len(v) == 3 and all(e["logprob"] <= 0 for e in v),
    }),
    Behaviour("a stop string", "SGLang, llama.cpp", TEXT, text(prompt="1, 2, 3,", stop=["e", "q", "\n"], max_tokens=60), {
        "choices.0": lambda v: v["finish_reason"] == "length" or v["stop_reason"] in ("e", "q", "\n"),
        "choices.0.text": lambda v: not {"e", "q", "\n"} & set(v),
    }),
    Behaviour("a stop string that is a string", "OpenAI's API", TEXT, text(prompt="Once", stop=" ", max_tokens=60), {
        "choices.0.text": lambda v: " " not in v,
    }),
    Behaviour("an end by the model", "SGLang", CHAT, chat(), {"choices.0.finish_reason": "stop"}),
    Behaviour("an end by length", "SGLang", CHAT, chat(max_tokens=1), {
        "choices.0.finish_reason": "length", "choices.0.stop_reason": None, "usage.completion_tokens": 1,
    }),
    Behaviour("no end by the model", "SGLang", CHAT, chat(ignore_eos=True, max_tokens=40), {
        "choices.0.finish_reason": "length", "usage.completion_tokens": 40,
    }),
    Behaviour("max_completion_tokens", "vLLM", CHAT, chat(max_completion_tokens=2), {"usage.completion_tokens": 2}),
    Behaviour("a seed", "llama.cpp", TEXT, text(temperature=1, seed=42, max_tokens=16)),
    Behaviour("no seed", "llama.cpp", TEXT, text(temperature=1, max_tokens=30), varies=True),
    Behaviour("temperature, top_p and penalties", "SGLang", TEXT, text(
        temperature=0.7, top_p=0.9, top_k=20, min_p=0.01, presence_penalty=0.5, frequency_penalty=-0.5, repetition_penalty=1.1,
        seed=1,
    )),
    Behaviour("a bias that forbids", "vLLM, llama.cpp", TEXT, text(
        prompt=IDS, return_token_ids=True, logit_bias={str(i): -100 for i in range(64, 300)}, max_tokens=12,
    ), {"choices.0.token_ids": lambda v: not set(v) & set(range(64, 300)), "choices.0.prompt_token_ids": IDS}),
    Behaviour("a bias that forces", "SGLang", TEXT, text(return_token_ids=True, logit_bias={"81": 100}), {
        "choices.0.token_ids": [81] * 5,
    }),
    Behaviour("a stop id", "vLLM", TEXT, text(logit_bias={"81": 100}, stop_token_ids=[81], return_token_ids=True), {
        "choices.0.finish_reason": "stop", "choices.0.token_ids": [81],
    }),
    Behaviour("parts of text", "vLLM, llama.cpp", CHAT, chat(messages=says(
        ("user", [{"type": "text", "text": "/think What is"}, {"type": "input_text", "text": "12 + 30?"}]),
    ), max_tokens=1, return_token_ids=True), {"prompt_token_ids": lambda v: len(v) > 3}),
    Behaviour("a system message and a history", "SGLang", CHAT, chat(messages=says(
        ("system", "You are a careful calculator."), ("user", "/think What is 1 + 1?"), ("assistant", "2"),
        ("user", "/think What is 12 + 30?"),
    )), {"choices.0.message.content": lambda v: v.strip() == "42"}),
    Behaviour("reasoning apart", "SGLang, vLLM", CHAT, chat(), {
        "choices.0.message.content": lambda v: v.strip() == "42", "choices.0.message.reasoning": lambda v: len(v) > 10,
    }),
    Behaviour("no thinking", "SGLang", CHAT, chat(
        messages=says(("user", "What is 12 + 30?")), chat_template_kwargs={"enable_thinking": False},
    ), {"choices.0.message.reasoning": None, "choices.0.message.content": lambda v: v.strip().isdecimal()}),
    Behaviour("ids of a chat", "vLLM", CHAT, chat(return_token_ids=True, max_tokens=4), {
        "prompt_token_ids": lambda v: len(v) > 3, "choices.0.token_ids": count(4),
    }),
    Behaviour("neutral values", "vLLM", CHAT, chat(
        tools=None, tool_choice="none", response_format={"type": "text"}, user="u", metadata={}, store=False, n=1, stop=None,
        seed=None, logit_bias=None, stream_options=None, functions=None,
    ), {"choices.0.message.content": lambda v: v.strip() == "42"}),
    Behaviour("neutral values of what is refused", "vLLM", TEXT, text(
        tools=[], tool_choice="auto", structured_outputs=None, guided_json=None, use_beam_search=False, watermarking=False,
        suffix="", length_penalty=1.0, truncation_side="left", best_of=1, vllm_xargs={},
    ), {"usage.completion_tokens": 5}),
    Behaviour("whole numbers with a point", "JavaScript's clients", TEXT, text(max_tokens=5.0, n=1.0, logprobs=1.0, top_k=3.0), {
        "usage.completion_tokens": 5,
    }),
    Behaviour("min_tokens", "vLLM", CHAT, chat(min_tokens=30, max_tokens=40, messages=says(
        ("user", "/no_think What is 12 + 30?"),
    )), {"usage.completion_tokens": lambda v: v >= 30}),
    Behaviour("min_tokens and stop strings and ids", "vLLM", TEXT, text(
        logit_bias={"81": 100}, stop_token_ids=[81], stop=["e"], min_tokens=3, return_token_ids=True, max_tokens=20,
    ), {"choices.0.token_ids": lambda v: len(v) >= 4 and 81 not in v[:3], "choices.0.finish_reason": "stop"}),
    Behaviour("a stop string that stays", "vLLM", TEXT, text(
        prompt="Once", stop=[" "], max_tokens=60, include_stop_str_in_output=True,
    ), {"choices.0.text": lambda v: v.endswith(" "), "choices.0.stop_reason": " "}),
    Behaviour("sixty-four stop strings", "OpenAI's clients", TEXT, text(stop=[f"<{i}>" for i in range(64)])),
    Behaviour("bad words", "vLLM", TEXT, text(
        prompt="Once", max_tokens=60, bad_words=["the", "a"], return_token_ids=True,
    ), {"choices.0.text": lambda v: not {"the", "a"} & set(v.split())}),
    Behaviour("allowed ids", "vLLM", TEXT, text(allowed_token_ids=[70, 81, 99], return_token_ids=True, temperature=1, seed=2), {
        "choices.0.token_ids": lambda v: set(v) <= {70, 81, 99},
    }),
    Behaviour("specials in the text", "vLLM", TEXT, text(logit_bias={"1": 100}, skip_special_tokens=False, max_tokens=3), {
        "choices.0.text": lambda v: len(v) >= 3 and v == v[: len(v) // 3] * 3,
    }),
    Behaviour("a prompt cut at its beginning", "vLLM", TEXT, text(
        prompt=IDS, truncate_prompt_tokens=2, return_token_ids=True,
    ), {"choices.0.prompt_token_ids": IDS[-2:], "usage.prompt_tokens": 2}),
    Behaviour("a prompt cut to what there is room for", "vLLM", TEXT, text(
        prompt=[5] * 3000, truncate_prompt_tokens=-1, max_tokens=5,
    ), {"usage.prompt_tokens": 2043, "usage.completion_tokens": 5}),
    Behaviour("scores of a prompt", "lm-eval", TEXT, text(prompt=IDS, echo=True, max_tokens=0, logprobs=2), {
        "choices.0.logprobs.token_logprobs": lambda v: v[0] is None and len(v) == 5 and all(p <= 0 for p in v[1:]),
        "choices.0.finish_reason": "length", "usage.completion_tokens": 0, "usage.prompt_tokens": 5,
        "choices.0": lambda v: "".join(v["logprobs"]["tokens"]) == v["text"],
    }),
    Behaviour("an answer that goes on with the last message", "vLLM", CHAT, chat(
        messages=says(("user", "What is 12 + 30?"), ("assistant", "The result is 42")), continue_final_message=True,
        add_generation_prompt=False, logit_bias={"81": 100}, max_tokens=2, return_token_ids=True,
    ), {"choices.0.token_ids": [81, 81]}),
    Behaviour("no beginning of an answer", "vLLM", CHAT, chat(add_generation_prompt=False, max_tokens=3), {
        "usage.prompt_tokens": lambda v: v > 3,
    }),
    Behaviour("no thinking, at the top", "SGLang", CHAT, chat(
        messages=says(("user", "What is 12 + 30?")), enable_thinking=False,
    ), {"choices.0.message.reasoning": None, "choices.0.message.content": lambda v: v.strip().isdecimal()}),
    Behaviour("unicode in and out", "llama.cpp", TEXT, text(prompt="naïve 日本語 🦙\u2028", echo=True, max_tokens=8), {
        "choices.0.text": lambda v: v.startswith("naïve 日本語 🦙\u2028"),
    }),
]  # fmt: skip

REFUSALS = [
    Refusal("a body that is no object", "vLLM", CHAT, [1], ("body",)),
    Refusal("a body that is a string", "vLLM", TEXT, "x", ("body",)),
    Refusal("no messages", "llama.cpp", CHAT, {}, ("messages",)),
    Refusal("messages: null", "llama.cpp", CHAT, {"messages": None}, ("messages",)),
    Refusal("messages: a string", "llama.cpp", CHAT, {"messages": "string"}, ("messages",)),
    Refusal("messages: numbers", "llama.cpp", CHAT, {"messages": [123]}, ("messages",)),
    Refusal("messages: an empty object", "llama.cpp", CHAT, {"messages": [{}]}, ("role",)),
    Refusal("a role that is a number", "llama.cpp", CHAT, {"messages": [{"role": 123, "content": "x"}]}, ("role",)),
    Refusal("a role that is none", "SGLang", CHAT, {"messages": says(("wizard", "x"))}, ("role", "wizard")),
    Refusal("a content that is a number", "llama.cpp", CHAT, {"messages": says(("system", 123))}, ("content",)),
    Refusal("no content of a user", "", CHAT, {"messages": says(("user", None))}, ("messages[0].content", "null")),
    Refusal("a tool's call in a history", "vLLM", CHAT, {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, (
        "messages[0].tool_calls", "tools are not available",
    )),
    Refusal("an image", "SGLang", CHAT, {"messages": says(("user", IMAGE))}, ("image_url",)),
    Refusal("no prompt", "vLLM", TEXT, {"max_tokens": 1}, ("prompt",)),
    Refusal("an empty list of prompts", "vLLM", TEXT, text(prompt=[]), ("prompt",)),
    Refusal("an id outside the vocabulary", "vLLM", TEXT, text(prompt=[99999]), ("99999",)),
    Refusal("too many logprobs", "vLLM", TEXT, text(logprobs=21), ("logprobs", "20")),
    Refusal("too many of a chat's", "vLLM", CHAT, chat(logprobs=True, top_logprobs=21), ("logprobs", "20")),
    Refusal("top_logprobs alone", "vLLM", CHAT, chat(top_logprobs=5), ("top_logprobs", "logprobs")),
    Refusal("a prompt that is too long", "SGLang, llama.cpp", TEXT, text(prompt=[5] * 3000), ("3000", "2048")),
    Refusal("prompt and output too long", "SGLang", TEXT, text(prompt=[5] * 2000, max_tokens=100), ("2000", "2048")),
    Refusal("a bias of an unknown id", "vLLM", CHAT, chat(logit_bias={"99999": 1}), ("logit_bias", "99999")),
    Refusal("a bias beyond 100", "vLLM", CHAT, chat(logit_bias={"5": 101}), ("logit_bias", "101")),
    Refusal("a bias of a word", "vLLM", CHAT, chat(logit_bias={"word": 1}), ("logit_bias", "word")),
    Refusal("a negative temperature", "vLLM", TEXT, text(temperature=-1), ("temperature", "-1")),
    Refusal("a top_p of 0", "vLLM", TEXT, text(top_p=0.0), ("top_p",)),
    Refusal("no choice", "vLLM", TEXT, text(n=0), ("n", "0")),
    Refusal("max_tokens below 0", "vLLM", TEXT, text(max_tokens=-1), ("max_tokens", "-1")),
    Refusal("stream_options without a stream", "vLLM", TEXT, text(stream_options={"include_usage": True}), ("stream_options",)),
    Refusal("tools", "vLLM", CHAT, chat(tools=[{"type": "function", "function": {"name": "f"}}]), ("tools",)),
    Refusal("a tool that is required", "vLLM", CHAT, chat(tool_choice="required"), ("tool_choice",)),
    Refusal("JSON mode", "SGLang, llama.cpp", CHAT, chat(response_format={"type": "json_object"}), ("response_format",)),
    Refusal("a format that is none", "llama.cpp", CHAT, chat(response_format={"type": "sound"}), ("response_format", "sound")),
    Refusal("a field that wants JSON", "vLLM", CHAT, chat(guided_json={"type": "object"}), ("guided_json", "structured output")),
    Refusal("a field that wants JSON of a completion", "vLLM", TEXT, text(structured_outputs={"json": {}}), (
        "structured_outputs",
    )),
    Refusal("a grammar", "llama.cpp", TEXT, text(grammar="root ::= x"), ("grammar", "structured output")),
    Refusal("beams", "vLLM", TEXT, text(use_beam_search=True), ("use_beam_search", "True")),
    Refusal("speech", "OpenAI's API", CHAT, chat(modalities=["text", "audio"]), ("modalities", "audio")),
    Refusal("several answers to choose from", "OpenAI's API", TEXT, text(best_of=4), ("best_of", "4")),
    Refusal("more at least than at most", "vLLM", TEXT, text(min_tokens=9), ("min_tokens", "9", "max_tokens (5)")),
    Refusal("min_tokens beyond the context", "vLLM", TEXT, text(min_tokens=4000, max_tokens=None), ("min_tokens", "2048")),
    Refusal("max_completion_tokens by its name", "vLLM", CHAT, chat(max_completion_tokens=0), ("max_completion_tokens: ",)),
    Refusal("top_logprobs by its name", "vLLM", CHAT, chat(logprobs=True, top_logprobs=-1), ("top_logprobs: ",)),
    Refusal("a number with a part", "vLLM", TEXT, text(max_tokens=5.5), ("max_tokens",)),
    Refusal("an empty stop string", "SGLang", TEXT, text(stop=[""]), ("stop", "0 characters")),
    Refusal("too many stop strings", "vLLM", TEXT, text(stop=["x"] * 65), ("stop", "65", "64")),
    Refusal("a prompt cut to nothing", "vLLM", TEXT, text(truncate_prompt_tokens=0), ("truncate_prompt_tokens", "0")),
    Refusal("an echo of a part", "", TEXT, text(echo=True, truncate_prompt_tokens=2), ("echo", "truncate_prompt_tokens")),
    Refusal("no id allowed", "vLLM", TEXT, text(allowed_token_ids=[]), ("allowed_token_ids", "0 ids")),
    Refusal("no id left", "", TEXT, text(allowed_token_ids=[81], stop_token_ids=[81], min_tokens=2), ("forbid every token",)),
    Refusal("an end and a beginning", "vLLM", CHAT, chat(continue_final_message=True, add_generation_prompt=True), (
        "add_generation_prompt", "continue_final_message",
    )),
    Refusal("a model that is not served", "vLLM", CHAT, chat(model="other"), ("other", "demo"), 404),
]  # fmt: skip
