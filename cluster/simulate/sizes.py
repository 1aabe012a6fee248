"""Sizes: the whole numbers that capacity must know of a model. Knows no file and no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """Whole numbers of a model.

    expert: weights of one routed expert of one layer
    attention: all other weights
    cache: values a token leaves in all layers' caches
    scores, prompt_scores: FLOP of all layers for one token to see one token, in decode and in a prompt
    """

    hidden: int
    moe_layers: int
    experts: int
    top_k: int
    expert: int
    attention: int
    cache: int
    scores: int
    prompt_scores: int
