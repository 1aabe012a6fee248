"""Every placement on the way is valid, and no rank fetches more than it may."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.balance.planner import held_by_rank
from cluster.balance.rounds import rounds
from experts.placement import EMPTY, Placement


def random_placement(rng: np.random.Generator, layers: int, experts: int, ranks: int, slots: int) -> Placement:
    table = np.full((layers, ranks * slots), EMPTY, dtype=np.int64)
    for row in table:
        order = rng.permutation(ranks * slots)
        row[order[:experts]] = rng.permutation(experts)
        spare = order[experts:]
        row[spare] = np.where(rng.random(len(spare)) < 0.8, rng.integers(0, experts, len(spare)), EMPTY)
    return Placement(3, ranks, slots, table)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(2, 12),
    st.integers(1, 5),
    st.integers(0, 2),
    st.integers(1, 4),
    st.integers(0, 10**6),
)
def test_the_way_is_valid_and_ends_at_the_target(
    layers: int, experts: int, ranks: int, spare: int, limit: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    slots = -(-experts // ranks) + spare
    start, target = (random_placement(rng, layers, experts, ranks, slots) for _ in range(2))
    way = rounds(start, target, limit)  # a Placement refuses a table without some expert
    assert (way[-1].slot_expert if way else start.slot_expert).tolist() == target.slot_expert.tolist()
    assert [p.version for p in way] == list(range(4, 4 + len(way)))


def test_a_rank_fetches_no_more_than_it_may_when_nothing_changes_places() -> None:
    start = Placement(0, 2, 6, np.array([[0, 1, 2, -1, -1, -1, 3, 4, 5, -1, -1, -1]]))
    target = Placement(0, 2, 6, np.array([[0, 1, 2, 3, 4, 5, 3, 4, 5, 0, 1, 2]]))
    way = rounds(start, target, 2)
    assert len(way) == 2
    before = start
    for after in way:
        new = held_by_rank(after, 6) & ~held_by_rank(before, 6)
        assert new.sum(axis=(0, 2)).max() <= 2
        before = after


def test_experts_change_places_in_one_round() -> None:
    start = Placement(0, 2, 2, np.array([[0, 1, 2, 3]]))
    target = Placement(0, 2, 2, np.array([[2, 1, 0, 3]]))
    assert len(rounds(start, target, 1)) == 1
