"""Sampling parameters as keyword arguments. Written by make_arguments from router_svc/sampling.py: do not edit."""

from collections.abc import Mapping, Sequence
from typing import TypedDict


class SamplingArguments(TypedDict, total=False):
    """What a call may set; None or absent = the server's default."""

    max_tokens: int | None  # At most so many new tokens. Default: what the context has room for.
    temperature: float | None  # Spread of the draw; 0 = greedy.
    top_p: float | None  # Draw from the likeliest tokens of this mass.
    top_k: int | None  # Draw from so many likeliest tokens; 0 or -1 = all.
    min_p: float | None  # Draw from tokens at least so likely, as a part of the likeliest.
    seed: int | None  # The same seed draws the same tokens. Default: a hash of key and id.
    stop: str | Sequence[str] | None  # Text that ends the answer, and is cut from it.
    stop_token_ids: Sequence[int] | None  # Tokens that end the answer.
    repetition_penalty: float | None  # Above 1: tokens seen before are less likely.
    presence_penalty: float | None  # Taken from each token generated before.
    frequency_penalty: float | None  # Taken from a token as often as it was generated.
    ignore_eos: bool | None  # The model's own end does not end the answer.
    logprobs: int | None  # Log-probabilities of the tokens and of so many likeliest in their places.
    n: int | None  # Answers to give.
    logit_bias: Mapping[int, float] | None  # Added to tokens' logits.
    include_stop_str_in_output: bool | None  # Text or token that ends the answer is part of it.
    min_tokens: int | None  # Nothing ends the answer before so many tokens.
    bad_words: str | Sequence[str] | None  # Text that is not generated.
    skip_special_tokens: bool | None  # Special tokens have no text.
    truncate_prompt_tokens: int | None  # Only so many tokens of the prompt's end; -1 = as many as there is room for.
    allowed_token_ids: Sequence[int] | None  # Only these tokens.
