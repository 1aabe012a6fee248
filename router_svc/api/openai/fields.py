"""What becomes of a request's fields that no body declares. Names: openai-python 3.54.0 and vLLM's protocol.py at
002032ee2b18 (both of November 2026), and what llama.cpp's server and SGLang call structured output.

A declared field is served. Of the others, a field that cannot change the output is taken in silence; one that would
change it is refused by name, unless its value asks for nothing; one that nobody knows is named in a warning.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router_svc.api.calls import invalid, shortened

_UNBUILT = "not available in this version"


@dataclass(frozen=True, slots=True)
class Refused:
    """A field that is not served.

    neutral: values that ask for nothing, beside null, false and what is empty
    instead: what serves the purpose
    """

    neutral: tuple[Any, ...] = ()
    instead: str = _UNBUILT

    def check(self, name: str, value: Any) -> None:
        """Raise ApiError unless the value asks for nothing."""
        if value is None or value is False or value in ("", [], {}) or value in self.neutral:
            return
        raise invalid(name, shortened(repr(value), 80), f"none: {self.instead}")


NO_EFFECT = frozenset(
    # Bookkeeping, and hints for caches and queues.
    "user metadata store annotations service_tier safety_identifier session_id "
    "prompt_cache_key prompt_cache_options prompt_cache_retention prediction "
    # Beside features that are refused themselves, or for which there is no input here.
    "parallel_tool_calls length_penalty media_io_kwargs mm_processor_kwargs return_mm_kwargs routed_experts_prompt_start "
    # How many tokens an event carries; how slow tokenizers join special tokens; offsets on endpoints that are not here.
    "stream_interval spaces_between_special_tokens return_token_offsets".split()
)

_STRUCTURED = Refused(instead=f"structured output is {_UNBUILT}")
_TOOLS = Refused(("none", "auto"), f"tools are {_UNBUILT}")
_TRANSFER = Refused(instead=f"disaggregated serving is {_UNBUILT}")
_COMMON = {
    "response_format": Refused(({"type": "text"},), f"structured output is {_UNBUILT}"),
    "structured_outputs": _STRUCTURED,
    "guided_json": _STRUCTURED,
    "guided_regex": _STRUCTURED,
    "guided_choice": _STRUCTURED,
    "guided_grammar": _STRUCTURED,
    "guided_decoding_backend": _STRUCTURED,
    "guided_whitespace_pattern": _STRUCTURED,
    "grammar": _STRUCTURED,
    "json_schema": _STRUCTURED,
    "regex": _STRUCTURED,
    "ebnf": _STRUCTURED,
    "use_beam_search": Refused(),
    "watermarking": Refused(),
    "truncation_side": Refused(("left",), "a prompt is cut at its beginning"),
    "prompt_logprobs": Refused(instead="echo with logprobs on /v1/completions gives the prompt's"),
    "logprob_token_ids": Refused(),
    "return_tokens_as_token_ids": Refused(instead="return_token_ids gives them"),
    "cache_salt": Refused(instead=f"a prefix cache of its own for a caller is {_UNBUILT}"),
    "kv_transfer_params": _TRANSFER,
    "ec_transfer_params": _TRANSFER,
    "vllm_xargs": Refused(),
    "repetition_detection": Refused(),
    "thinking_token_budget": Refused((-1,)),
    "resume_from": Refused(instead=f"resuming a stream is {_UNBUILT}"),
}
_CHAT = {
    "tools": _TOOLS,
    "tool_choice": _TOOLS,
    "functions": _TOOLS,
    "function_call": _TOOLS,
    "modalities": Refused((["text"],), "only text is generated"),
    "audio": Refused(instead="only text is generated"),
    "verbosity": Refused(("medium",)),
    "web_search_options": Refused(),
    "moderation": Refused(),
    "echo": Refused(instead="return_token_ids gives the prompt's ids"),
    "chat_template": Refused(instead="the server's --chat-template FILE"),
    "return_prompt_text": Refused(instead="/tokenize and /detokenize give it"),
}
_COMPLETION = {
    "tools": _TOOLS,
    "tool_choice": _TOOLS,
    "functions": _TOOLS,
    "suffix": Refused(),
    "prompt_embeds": Refused(),
}
REFUSED_OF_MESSAGES: Mapping[str, Refused] = {
    "tool_calls": _TOOLS,
    "function_call": _TOOLS,
    "audio": Refused(instead="only text is taken"),
}
REFUSED_OF_CHATS: Mapping[str, Refused] = _COMMON | _CHAT
REFUSED_OF_COMPLETIONS: Mapping[str, Refused] = _COMMON | _COMPLETION
