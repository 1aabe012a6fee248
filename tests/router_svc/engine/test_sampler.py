"""The sampler at the ends of every field's range: always a token, and the likeliest where nothing else is left."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from router_svc.engine.sampler import NONE_LEFT, Draw, sample
from router_svc.sampling import Sampling

_SMALL = st.sampled_from([5e-324, 1e-300, 1e-46, 1e-38, 1e-9])
_FIELDS = st.fixed_dictionaries(
    {
        "temperature": st.one_of(_SMALL, st.floats(0.0, 100.0)),
        "top_p": st.one_of(_SMALL, st.floats(0.0, 1.0, exclude_min=True)),
        "min_p": st.one_of(_SMALL, st.floats(0.0, 1.0)),
        "repetition_penalty": st.one_of(_SMALL, st.floats(0.0, 10.0, exclude_min=True)),
        "presence_penalty": st.floats(-2.0, 2.0),
        "frequency_penalty": st.floats(-2.0, 2.0),
        "top_k": st.integers(0, 2**31 - 1),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "logit_bias": st.lists(st.tuples(st.integers(0, 31), st.sampled_from([-100.0, 100.0])), max_size=4).map(tuple),
        "logprobs": st.none() | st.integers(0, 20),
    }
)


def draw(row: torch.Tensor, **fields: object) -> int:
    """The token drawn from one row of logits [V] after the tokens 1, 2, 3, of which 3 is output."""
    sampling = Sampling(**{"max_tokens": 9, "seed": 1, **fields})  # type: ignore[arg-type]
    (drawn,) = sample(row[None], [Draw(sampling, 0, 1, [1, 2, 3], 2)])
    return drawn.token


@settings(max_examples=200, deadline=None)
@given(fields=_FIELDS, seed=st.integers(0, 99), scale=st.sampled_from([0.0, 1.0, 1e4]))
def test_any_fields_draw_a_token(fields: dict[str, object], seed: int, scale: float) -> None:
    row = torch.randn(32, generator=torch.Generator().manual_seed(seed)) * scale
    assert 0 <= draw(row, **fields) < 32


@pytest.mark.parametrize("tiny", [5e-324, 1e-300, 1e-40, 1e-9])
def test_the_smallest_temperature_and_top_p_are_greedy(tiny: float) -> None:
    row = torch.randn(512, generator=torch.Generator().manual_seed(3))
    assert draw(row, temperature=tiny) == int(row.argmax())
    assert draw(row, temperature=1.0, top_p=tiny) == int(row.argmax())


@settings(max_examples=100, deadline=None)
@given(fields=_FIELDS, seed=st.integers(0, 99))
def test_what_is_forbidden_is_never_drawn(fields: dict[str, object], seed: int) -> None:
    """After 1, 2, 3: ends before min_tokens, and the last tokens of words whose beginning stands there."""
    row = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    ends = {"eos_token_ids": (4, 5), "stop_token_ids": (6,), "min_tokens": 2}
    words = ((7,), (3, 8), (2, 3, 9), (9, 10), (2, 11))  # the 2 is the prompt's, and 9 does not stand there
    one_left = tuple((token, -100.0) for token in range(32) if token not in (4, 5, 6, 7, 8))
    allowed = {9, 10, 11}
    for more in ({}, {"logit_bias": tuple((token, 100.0) for token in (4, 5, 6, 7, 8))}, {"logit_bias": one_left}):
        drawn = draw(row, **{**fields, **ends, "bad_word_ids": words, **more})
        assert drawn in allowed | set(range(4)) | set(range(12, 32))
    assert draw(row, temperature=0.0, eos_token_ids=(4,), min_tokens=1, logit_bias=((4, 100.0),)) == 4, "one was drawn"


@settings(max_examples=100, deadline=None)
@given(fields=_FIELDS, allowed=st.sets(st.integers(0, 31), min_size=1), seed=st.integers(0, 99))
def test_only_what_is_allowed_is_drawn(fields: dict[str, object], allowed: set[int], seed: int) -> None:
    row = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    assert draw(row, **fields, allowed_token_ids=tuple(allowed)) in allowed
    token = draw(row, temperature=0.0, allowed_token_ids=tuple(allowed))
    assert row[token] == max(row[one] for one in allowed)


def test_everything_forbidden_is_named() -> None:
    row = torch.zeros(8)
    assert draw(row, allowed_token_ids=(4,), eos_token_ids=(4,), min_tokens=2) == NONE_LEFT
    assert draw(row, bad_word_ids=tuple((token,) for token in range(8)), temperature=1.0) == NONE_LEFT
    assert draw(row, bad_word_ids=tuple((token,) for token in range(7)), temperature=1.0, logprobs=1) == 7


def test_a_tiny_repetition_penalty_repeats_and_a_bias_decides() -> None:
    row = torch.full((512,), 0.5)
    assert draw(row, temperature=0.001, repetition_penalty=1e-320) in (1, 2, 3)
    assert draw(row, temperature=1.0, logit_bias=((40, 100.0),)) == 40
    banned = tuple((token, -100.0) for token in range(511))
    assert draw(row, temperature=1.0, logit_bias=banned) == 511
