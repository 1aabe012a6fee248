"""The split: every pair goes to a copy of its expert, and loads come out level."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.exchange.split import SplitTable, pour, quotas, split
from experts.placement import Placement


def routed(tokens: int, experts: int, top_k: int, seed: int) -> np.ndarray:
    """[T, K] distinct experts per token, some popular, and a few pairs that go nowhere."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(experts, 0.5)) + 1e-6
    ids = [rng.choice(experts, top_k, replace=False, p=weights / weights.sum()) for _ in range(tokens)]
    out = np.array(ids, dtype=np.int32).reshape(tokens, top_k)
    out[rng.random(out.shape) < 0.05] = -1
    return out


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 6), st.integers(3, 30), st.integers(0, 6), st.integers(0, 70), st.integers(0, 10**6))
def test_each_pair_goes_to_a_copy_of_its_expert(ranks: int, experts: int, spare: int, tokens: int, seed: int) -> None:
    placement = Placement.first(1, experts, ranks, -(-experts // ranks) + spare)
    table = SplitTable.of(placement, 0)
    ids = routed(tokens, experts, 3, seed)
    slots = split(table, ids, turn=seed % 5)
    assert slots.shape == ids.shape
    assert (slots[ids < 0] == -1).all()
    assert (placement.slot_expert[0][slots[ids >= 0]] == ids[ids >= 0]).all()
    assert (split(table, ids, turn=seed % 5) == slots).all()


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 6), st.integers(1, 60), st.data())
def test_quotas_conserve_and_never_load_a_rank_above_the_even_split(ranks: int, most: int, data: st.DataObject) -> None:
    experts = 12
    placement = Placement.first(1, experts, ranks, -(-experts // ranks) + 2)
    table = SplitTable.of(placement, 0)
    counts = np.array([0, *data.draw(st.lists(st.integers(0, most), min_size=experts, max_size=experts))])
    shares = quotas(table, counts)
    assert (np.add.reduceat(shares, table.starts) == counts).all()
    assert shares.min() >= 0
    rank = table.copies // placement.slots_per_rank
    loads = np.bincount(rank[1:], weights=shares[1:], minlength=ranks)
    copies = np.diff(np.append(table.starts, len(table.copies)))
    even = np.bincount(rank[1:], weights=np.repeat(counts / copies, copies)[1:], minlength=ranks)
    assert loads.max() <= even.max() + len(table.replicated), "worse than dividing every expert evenly"


def test_one_hot_expert_is_shared_level() -> None:
    placement = Placement(0, 2, 3, np.array([[0, 1, 2, 3, 4, 0]], dtype=np.int64))
    table = SplitTable.of(placement, 0)
    ids = np.array([[0]] * 10 + [[1]] * 4, dtype=np.int32)
    slots = split(table, ids)
    assert np.bincount(slots.ravel() // 3).tolist() == [7, 7]


def test_sources_take_turns_with_the_odd_token() -> None:
    placement = Placement(0, 2, 1, np.array([[0, 0]], dtype=np.int64))
    table = SplitTable.of(placement, 0)
    got = [split(table, np.array([[0]]), turn=turn).item() for turn in range(4)]
    assert got == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("loads", "ranks", "count", "shares"),
    [([0, 0], (0, 1), 5, [3, 2]), ([9, 0, 4], (0, 1, 2), 4, [0, 4, 0]), ([9, 0, 4], (0, 1, 2), 10, [0, 7, 3])],
)
def test_pour_fills_the_lowest_first(loads: list[int], ranks: tuple[int, ...], count: int, shares: list[int]) -> None:
    assert pour(loads, ranks, count, 0) == shares


def test_a_second_copy_on_one_rank_gets_nothing() -> None:
    placement = Placement(0, 1, 3, np.array([[0, 1, 0]], dtype=np.int64))
    assert (split(SplitTable.of(placement, 0), np.array([[0, 1], [1, 0]])) == [[0, 1], [1, 0]]).all()
