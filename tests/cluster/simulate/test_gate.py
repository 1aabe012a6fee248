"""The made gate picks each expert as often as asked, never twice for one token."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.balance.shape import ClusterShape
from cluster.simulate.gate import ids_for
from cluster.simulate.replay import rank_times
from experts.exchange.split import SplitPolicy, SplitTable, rank_tokens
from experts.placement import Placement


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


def test_a_replay_with_a_floor_divides_as_the_ranks_do() -> None:
    """Few tokens: whole experts go to one copy, in whole numbers."""
    rng = np.random.default_rng(1)
    loads = rng.multinomial(32, rng.dirichlet(np.ones(16)), (30, 2)).astype(np.int64)
    placement = Placement.first(2, 16, 4, 5)
    shape = ClusterShape(4, 5)
    times = rank_times(loads, placement, shape, "exact", floor=8.0)
    assert times.shape == (30, 2, 4)
    assert (times == times.round()).all()
    assert (times.sum(axis=2) == loads.sum(axis=2)).all()
    table = SplitTable.of(placement, 1, SplitPolicy(8.0))
    assert times[3, 1].tolist() == rank_tokens(table, np.append(0, loads[3, 1])).tolist()
    fine = rank_times(loads, placement, shape, "exact")
    assert times.max(axis=2).sum() >= fine.max(axis=2).sum() - 1e-6
