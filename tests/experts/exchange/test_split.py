"""The split: every pair goes to a copy of its expert, the slowest rank is as quick as it can be, C equals Python."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from experts.exchange.split import SplitPolicy, SplitTable, quotas, rank_tokens, split, to_home
from experts.placement import EMPTY, Placement


def routed(tokens: int, experts: int, top_k: int, seed: int) -> np.ndarray:
    """[T, K] distinct experts per token, some popular, and a few pairs that go nowhere."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(experts, 0.5)) + 1e-6
    ids = [rng.choice(experts, top_k, replace=False, p=weights / weights.sum()) for _ in range(tokens)]
    out = np.array(ids, dtype=np.int32).reshape(tokens, top_k)
    out[rng.random(out.shape) < 0.05] = -1
    return out


def scattered(experts: int, ranks: int, slots: int, seed: int) -> Placement:
    """A placement with random copies, some slots empty, some twins on one rank."""
    rng = np.random.default_rng(seed)
    table = np.full(ranks * slots, EMPTY, dtype=np.int64)
    order = rng.permutation(ranks * slots)
    table[order[:experts]] = rng.permutation(experts)
    spare = order[experts:]
    filled = spare[rng.random(len(spare)) < 0.9]
    table[filled] = rng.integers(0, experts, len(filled))
    return Placement(0, ranks, slots, table[None])


def least_slowest(table: SplitTable, counts: np.ndarray) -> float:
    """The linear program: the least tokens of the busiest rank over all divisions (all speeds alike)."""
    fill = table.waterfill
    copies, n = len(fill.slot), len(fill.expert)
    fixed = counts.copy()
    fixed[fill.expert] = 0
    loads = np.bincount(fill.home, weights=fixed, minlength=fill.ranks + 1)[: fill.ranks]
    if n == 0:
        return float(loads.max())
    at_rank = np.zeros((fill.ranks, copies + 1))
    at_rank[fill.rank, np.arange(copies)] = 1
    at_rank[:, -1] = -1
    per_expert = np.zeros((n, copies + 1))
    for i in range(n):
        per_expert[i, fill.start[i] : fill.start[i + 1]] = 1
    cost = np.zeros(copies + 1)
    cost[-1] = 1
    done = linprog(cost, A_ub=at_rank, b_ub=-loads, A_eq=per_expert, b_eq=counts[fill.expert], method="highs")
    assert done.success, done.message
    return float(done.fun)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 6), st.integers(3, 30), st.integers(0, 6), st.integers(0, 70), st.integers(0, 10**6))
def test_each_pair_goes_to_a_copy_of_its_expert(ranks: int, experts: int, spare: int, tokens: int, seed: int) -> None:
    placement = scattered(experts, ranks, -(-experts // ranks) + spare, seed)
    table = SplitTable.of(placement, 0, SplitPolicy(floor=(seed % 3) * 4.0))
    ids = routed(tokens, experts, 3, seed)
    for slots in (split(table, ids, turn=seed % 5), to_home(table, ids)):
        assert slots.shape == ids.shape
        assert (slots[ids < 0] == -1).all()
        assert (placement.slot_expert[0][slots[ids >= 0]] == ids[ids >= 0]).all()
    assert (split(table, ids, turn=seed % 5) == split(table, ids, turn=seed % 5)).all()


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 9), st.integers(2, 40), st.integers(1, 5), st.integers(0, 3000), st.integers(0, 10**6),
    st.sampled_from([0.0, 3.0, 125.0]), st.booleans(),
)  # fmt: skip
def test_c_and_python_divide_alike(
    ranks: int, experts: int, spare: int, most: int, seed: int, floor: float, uneven: bool
) -> None:
    rng = np.random.default_rng(seed)
    placement = scattered(experts, ranks, -(-experts // ranks) + spare, seed)
    speeds = tuple(rng.uniform(0.3, 2, ranks).tolist()) if uneven else ()
    table = SplitTable.of(placement, 0, SplitPolicy(floor, speeds))
    if table.kernel is None:
        pytest.skip("no C compiler here")
    plain = dataclasses.replace(table, kernel=None)
    counts = np.append(rng.integers(0, 5), rng.integers(0, most + 1, experts) * (rng.random(experts) < 0.8))
    turn = seed % 4
    assert quotas(table, counts, turn).tolist() == quotas(plain, counts, turn).tolist()
    ids = routed(most % 40, experts, 2, seed)
    assert (split(table, ids, turn) == split(plain, ids, turn)).all()


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 12), st.integers(4, 60), st.integers(1, 5), st.integers(1, 20000), st.integers(0, 10**6))
def test_the_busiest_rank_is_as_in_the_linear_program(
    ranks: int, experts: int, spare: int, most: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    placement = scattered(experts, ranks, -(-experts // ranks) + spare, seed)
    table = SplitTable.of(placement, 0)
    counts = np.append(0, (rng.pareto(1.2, experts) * most / 20).astype(np.int64) % (most + 1))
    shares = quotas(table, counts)
    fill = table.waterfill
    assert shares.min(initial=0) >= 0
    for i, expert in enumerate(fill.expert):
        assert shares[fill.start[i] : fill.start[i + 1]].sum() == counts[expert]
    busiest = rank_tokens(table, counts).max()
    least = least_slowest(table, counts)
    assert busiest <= max(1.005 * least, least + 1.5)


@pytest.mark.parametrize(("ranks", "slots", "ring"), [(16, 6, 1), (32, 9, 1), (12, 2, 1)])
def test_long_rings_of_copies_come_out_level_too(ranks: int, slots: int, ring: int) -> None:
    """Each rank's last slot copies the next rank's first expert: tokens must travel the whole ring."""
    own = slots - ring
    table = np.array(
        [[r * own + k for k in range(own)] + [(r + 1) % ranks * own] for r in range(ranks)], dtype=np.int64
    )
    made = SplitTable.of(Placement(0, ranks, slots, table.reshape(1, -1)), 0)
    counts = np.full(1 + ranks * own, 10, dtype=np.int64)
    counts[1 : 1 + ranks * own : own] = 400
    counts[1] = 900
    least = least_slowest(made, counts)
    assert rank_tokens(made, counts).max() <= max(1.005 * least, least + 1)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 8), st.integers(8, 64), st.integers(1, 65536), st.integers(0, 10**6))
def test_with_costly_weights_it_is_never_slower_than_the_home_copies(
    ranks: int, experts: int, tokens: int, seed: int
) -> None:
    """Cost of a slot in use = max(reading, tokens): copies must not cost time at any batch size."""
    rng = np.random.default_rng(seed)
    floor = 125.0
    slots = -(-experts // ranks) + 2
    table = SplitTable.of(Placement.first(1, experts, ranks, slots), 0, SplitPolicy(floor))
    counts = np.append(0, rng.multinomial(tokens, rng.dirichlet(np.full(experts, 0.6)))).astype(np.int64)
    fill = table.waterfill

    def slowest(slot: np.ndarray, tokens: np.ndarray) -> float:
        used = tokens > 0
        cost = np.where(used, np.maximum(tokens, floor), 0)
        return float(np.bincount(slot // slots, weights=cost, minlength=ranks).max())

    home = slowest(table.lookup[1:], counts[1:])
    single = np.setdiff1d(np.arange(1, experts + 1), fill.expert)
    divided = slowest(
        np.concatenate([table.lookup[single], fill.slot]), np.concatenate([counts[single], quotas(table, counts)])
    )
    assert divided <= home + 1


def test_one_hot_expert_is_shared_level() -> None:
    placement = Placement(0, 2, 3, np.array([[0, 1, 2, 3, 4, 0]], dtype=np.int64))
    table = SplitTable.of(placement, 0)
    ids = np.array([[0]] * 10 + [[1]] * 4, dtype=np.int32)
    slots = split(table, ids)
    assert np.bincount(slots.ravel() // 3).tolist() == [7, 7]


def test_a_slow_rank_gets_less() -> None:
    placement = Placement(0, 2, 1, np.array([[0, 0]], dtype=np.int64))
    table = SplitTable.of(placement, 0, SplitPolicy(speeds=(1.0, 0.25)))
    assert quotas(table, np.array([0, 100])).tolist() == [80, 20]


def test_few_tokens_go_whole_to_one_copy() -> None:
    placement = Placement(0, 2, 2, np.array([[0, 1, 0, 1]], dtype=np.int64))
    table = SplitTable.of(placement, 0, SplitPolicy(floor=64))
    shares = quotas(table, np.array([0, 30, 20]))
    assert sorted(shares.reshape(2, 2).tolist()) in ([[0, 20], [30, 0]], [[0, 20], [0, 30]], [[20, 0], [30, 0]])
    assert rank_tokens(table, np.array([0, 30, 20])).min() > 0, "one expert a rank, not both on one"


def test_sources_take_turns_with_the_odd_token() -> None:
    placement = Placement(0, 2, 1, np.array([[0, 0]], dtype=np.int64))
    table = SplitTable.of(placement, 0)
    got = [split(table, np.array([[0]]), turn=turn).item() for turn in range(4)]
    assert got == [0, 1, 0, 1]


def test_homes_are_level_over_ranks() -> None:
    placement = Placement(0, 3, 4, np.array([[0, 1, 2, 3, 0, 1, 4, 5, 2, 3, 4, 5]], dtype=np.int64))
    table = SplitTable.of(placement, 0)
    assert np.bincount(table.lookup[1:] // 4).tolist() == [2, 2, 2]


def test_a_second_copy_on_one_rank_gets_nothing() -> None:
    placement = Placement(0, 1, 3, np.array([[0, 1, 0]], dtype=np.int64))
    assert (split(SplitTable.of(placement, 0), np.array([[0, 1], [1, 0]])) == [[0, 1], [1, 0]]).all()
