"""min_copies: every expert stays on so many ranks, whatever the policy wants."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.balance.planner import held_by_rank
from cluster.balance.policies.registry import load_policy
from cluster.balance.shape import ClusterShape
from cluster.simulate.replay import Replay, ReplaySettings, replay
from cluster.simulate.traffic import Traffic, make_loads
from experts.placement import ABSENT, EMPTY, Placement

LOADS = make_loads(Traffic("drift", steps=320, layers=2, experts=64, top_k=8, tokens=2048, seed=1))


def holders(placement: Placement) -> np.ndarray:
    """[L, E] ranks that hold an expert."""
    return held_by_rank(placement, placement.experts).sum(axis=1)


def replayed(policy: str, min_copies: int) -> Replay:
    """15 plans, on 3 ranks with as many spare slots as experts."""
    return replay(LOADS, ClusterShape(3, 43, min_copies=min_copies), load_policy(policy), ReplaySettings())


@pytest.mark.parametrize("policy", ["tokenyard", "eplb"])
def test_plans_keep_two_copies(policy: str) -> None:
    kept, free = replayed(policy, 2), replayed(policy, 1)
    assert holders(kept.placement).min() == 2
    assert holders(free.placement).min() == 1, "hot experts take the copies of cold ones where nothing forbids it"
    if policy == "tokenyard":
        assert kept.excess < free.excess + 0.01


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 9), st.integers(1, 70), st.integers(0, 5), st.integers(0, 20))
def test_the_first_placement_keeps_two_copies(ranks: int, experts: int, more: int, layer: int) -> None:
    slots = -(-2 * experts // ranks) + more
    first = Placement.first(layer % 3 + 1, experts, ranks, slots)
    assert holders(first).min() >= 2


def test_without_slots_for_it_there_are_fewer() -> None:
    assert ClusterShape(3, 43, min_copies=2).copies_kept(64) == 2
    assert ClusterShape(3, 42, min_copies=2).copies_kept(64) == 1
    assert ClusterShape(3, 43, min_copies=2, dead=frozenset({0})).copies_kept(64) == 1
    assert ClusterShape(2, 64, min_copies=3).copies_kept(20) == 2
    assert ClusterShape(2, 5, min_copies=2, absent=frozenset({0})).copies_kept(5) == 1


def test_sole_copies_are_named_by_rank() -> None:
    table = np.array([[0, 1, 1, 2, 0, 0], [0, 1, 0, 1, 2, EMPTY], [0, 1, 2, 0, 1, 2]])
    placement = Placement(0, 3, 2, table)
    assert placement.sole_copies() == {1: [(0, 2)], 2: [(1, 2)]}
    twice = Placement(0, 2, 3, np.array([[0, 0, ABSENT, 1, 2, 1]]))
    assert twice.sole_copies() == {0: [(0, 0)], 1: [(0, 1), (0, 2)]}, "two copies on one rank are lost together"
