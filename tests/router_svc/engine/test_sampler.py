"""The sampler at the ends of every field's range: always a token, and the likeliest where nothing else is left."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from router_svc.engine.sampler import Draw, sample
from router_svc.request import Sampling

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


def test_a_tiny_repetition_penalty_repeats_and_a_bias_decides() -> None:
    row = torch.full((512,), 0.5)
    assert draw(row, temperature=0.001, repetition_penalty=1e-320) in (1, 2, 3)
    assert draw(row, temperature=1.0, logit_bias=((40, 100.0),)) == 40
    banned = tuple((token, -100.0) for token in range(511))
    assert draw(row, temperature=1.0, logit_bias=banned) == 511
