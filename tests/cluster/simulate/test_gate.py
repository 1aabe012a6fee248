"""The made gate picks each expert as often as asked, never twice for one token."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.simulate.gate import ids_for


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 8), st.integers(0, 10**6))
def test_counts_are_met_and_experts_distinct(tokens: int, experts: int, top_k: int, seed: int) -> None:
    top_k = min(top_k, experts)
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 2 * tokens, experts)
    ids = ids_for(counts, tokens, top_k, rng)
    assert ids.shape == (tokens, top_k)
    for row in ids:
        real = row[row >= 0]
        assert len(set(real.tolist())) == len(real)
    got = np.bincount(ids[ids >= 0], minlength=experts)
    possible = np.minimum(counts, tokens)
    assert (got <= possible).all()
    assert got.sum() == min(possible.sum(), tokens * top_k)
    if possible.sum() <= tokens * top_k:
        assert got.tolist() == possible.tolist()
