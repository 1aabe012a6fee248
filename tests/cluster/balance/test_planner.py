"""Any loads, ranks, slots and deaths: a valid placement or a clear error; never worse; nothing fetched without need."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, milp

from cluster.balance.cost import CostModel
from cluster.balance.forecast import Rows, rows_of
from cluster.balance.kernel import LayerPlanner
from cluster.balance.planner import (
    PlanLimits,
    far_fetches,
    fetches,
    greedy_layout,
    held_by_rank,
    plan_first,
    plan_next,
    repaired,
)
from cluster.balance.policies.base import Situation
from cluster.balance.policies.eplb import replicas
from cluster.balance.policies.registry import POLICIES, ask, load_policy
from cluster.balance.score import predicted_excess
from cluster.balance.shape import ClusterShape
from cluster.bench.small_batches import ratios
from experts.errors import UserError
from experts.exchange.split import SplitTable, rank_tokens
from experts.placement import EMPTY, Placement

FREE = CostModel(horizon=1e12)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Rows, ClusterShape, Placement]:
    """Loads of any skew, ranks of any speed, a placement with holes and twins, some ranks dead."""
    ranks = draw(st.integers(1, 9))
    experts = draw(st.integers(1, 24))
    slots = -(-experts // ranks) + draw(st.integers(0, 4))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    layers, steps = draw(st.integers(1, 2)), draw(st.integers(1, 6))
    loads = rng.poisson(rng.dirichlet(np.full(experts, 0.4), (steps, layers)) * draw(st.integers(0, 4000)))
    speeds = tuple(rng.uniform(0.2, 2, ranks).tolist()) if draw(st.booleans()) else ()
    dead = frozenset(rng.choice(ranks, draw(st.integers(0, ranks - 1)), replace=False).tolist())
    per_node = draw(st.sampled_from([0, 1, 2, 3]))
    table = np.full((layers, ranks * slots), EMPTY, dtype=np.int64)
    for row in table:
        order = rng.permutation(ranks * slots)
        row[order[:experts]] = rng.permutation(experts)
        spare = order[experts:][rng.random(ranks * slots - experts) < 0.7]
        row[spare] = rng.integers(0, experts, len(spare))
    placement = Placement(5, ranks, slots, table)
    shape = ClusterShape(ranks, slots, per_node, dead, speeds, min_copies=draw(st.integers(1, 3)))
    return rows_of(loads.astype(np.int64)), shape, placement


def check_valid(placement: Placement, shape: ClusterShape, experts: int) -> None:
    held = held_by_rank(placement, experts)
    alive = [rank for rank in range(shape.ranks) if rank not in shape.dead]
    least = shape.copies_kept(experts)
    assert (held[:, alive].sum(axis=1) >= least).all(), f"every expert on {least} live ranks"
    assert not held[:, sorted(shape.dead)].any(), "nothing on a dead one"
    twins = (placement.slot_expert >= 0).sum() - held.sum()
    assert twins == 0, "no two copies of an expert on one rank"


@settings(max_examples=120, deadline=None)
@given(situations())
def test_plans_are_valid_or_refused(made: tuple[Rows, ClusterShape, Placement]) -> None:
    rows, shape, placement = made
    experts = rows.loads.shape[2]
    if shape.live_slots < experts:
        with pytest.raises(UserError, match="one per expert"):
            plan_first(rows, shape, PlanLimits())
        with pytest.raises(UserError, match="one per expert"):
            plan_next(rows, shape, placement, FREE, PlanLimits())
        return
    first = plan_first(rows, shape, PlanLimits())
    after = plan_next(rows, shape, placement, FREE, PlanLimits())
    for plan in (first, after):
        check_valid(plan.placement, shape, experts)
        assert (plan.after <= plan.before + 1e-9).all(), "a search never makes it worse"
    changed = after.placement is not placement
    assert after.placement.version == placement.version + changed


@settings(max_examples=80, deadline=None)
@given(situations())
def test_a_death_fetches_only_what_was_lost(made: tuple[Rows, ClusterShape, Placement]) -> None:
    rows, shape, placement = made
    shape = replace(shape, min_copies=1)
    layers, _, experts = rows.loads.shape
    if shape.live_slots < experts:
        return
    held = held_by_rank(placement, experts)
    alive = [rank for rank in range(shape.ranks) if rank not in shape.dead]
    lost = (~held[:, alive].any(axis=1)).sum(axis=1)
    table = repaired(rows.loads.mean(axis=1), shape, placement).astype(np.int64)
    after = Placement(6, shape.ranks, shape.slots_per_rank, table)
    assert fetches(placement, after).tolist() == lost.tolist()
    assert len(table) == layers


@settings(max_examples=80, deadline=None)
@given(situations())
def test_what_the_planner_sees_is_what_the_split_does(made: tuple[Rows, ClusterShape, Placement]) -> None:
    rows, shape, placement = made
    shape = replace(shape, dead=frozenset(), speeds=())
    planner = LayerPlanner(shape, rows.loads[0], rows.weight)
    held = placement.slot_expert[0].astype(np.int16)
    table = SplitTable.of(placement, 0)
    for load, times in zip(rows.loads[0], planner.times(held), strict=True):
        tokens = rank_tokens(table, np.append(0, load.astype(np.int64)))
        assert tokens.sum() == load.sum()
        assert abs(tokens.max() - times.max()) <= 0.01 * load.sum() / shape.ranks + 3


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4]))
def test_copies_go_to_different_nodes_while_there_is_a_choice(seed: int, per_node: int) -> None:
    rng = np.random.default_rng(seed)
    shape = ClusterShape(8, 5, per_node, spread=True)
    load = rng.pareto(1.0, (1, 24)) * 100
    table = greedy_layout(load, shape)[0].reshape(8, 5)
    nodes = 8 // per_node
    for expert in range(24):
        at = [rank // per_node for rank in range(8) if (table[rank] == expert).any()]
        assert at, "every expert has a slot"
        if len(at) == 2 and nodes >= 4:
            assert len(set(at)) == 2


def least_busiest(load: np.ndarray, ranks: int, slots: int) -> float:
    """The best placement and division there is, by mixed-integer programming: y[e, r] copies, x[e, r] tokens."""
    experts = len(load)
    n = experts * ranks
    cost = np.zeros(2 * n + 1)
    cost[-1] = 1
    every = np.eye(n).reshape(experts, ranks, n)
    none = np.zeros((1, n))
    rows, low, high = [], [], []
    for e in range(experts):  # all tokens somewhere
        rows.append(np.concatenate([every[e].sum(axis=0), none[0], [0]]))
        low.append(load[e])
        high.append(load[e])
    for e in range(experts):  # only where there is a copy
        for r in range(ranks):
            rows.append(np.concatenate([every[e, r], -load[e] * every[e, r], [0]]))
            low.append(-np.inf)
            high.append(0)
    for r in range(ranks):
        rows.append(np.concatenate([every[:, r].sum(axis=0), none[0], [-1]]))
        low.append(-np.inf)
        high.append(0)
        rows.append(np.concatenate([none[0], every[:, r].sum(axis=0), [0]]))
        low.append(0)
        high.append(slots)
    for e in range(experts):
        rows.append(np.concatenate([none[0], every[e].sum(axis=0), [0]]))
        low.append(1)
        high.append(ranks)
    whole = np.concatenate([np.zeros(n), np.ones(n), [0]])
    upper = np.concatenate([np.full(n, np.inf), np.ones(n), [np.inf]])
    done = milp(
        cost, integrality=whole, bounds=(0, upper), constraints=LinearConstraint(np.array(rows), low, high),
        options={"time_limit": 20},
    )  # fmt: skip
    assert done.success, done.message
    return float(done.fun)


def test_a_first_plan_is_near_the_best_there_is() -> None:
    ratios = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        load = np.maximum((rng.pareto(1.2, 8) * 100).round(), 1)
        shape = ClusterShape(3, 4)
        plan = plan_first(rows_of(load[None, None].astype(np.int64)), shape, PlanLimits(layer_seconds=1.0))
        busiest = (1 + plan.after[0]) * load.sum() / 3
        ratios.append(busiest / least_busiest(load, 3, 4))
        assert ratios[-1] >= 1 - 1e-6
    assert np.mean(ratios) < 1.02, ratios
    assert max(ratios) < 1.1, ratios


def test_a_move_that_does_not_pay_is_not_made() -> None:
    rng = np.random.default_rng(3)
    loads = rng.multinomial(4000, rng.dirichlet(np.full(16, 0.5)), (20, 1)).astype(np.int64)
    shape = ClusterShape(4, 5)
    first = Placement.first(1, 16, 4, 5)
    dear = plan_next(rows_of(loads), shape, first, CostModel(bandwidth=1.0), PlanLimits())
    assert dear.placement is first
    assert dear.moves.sum() == 0
    cheap = plan_next(rows_of(loads), shape, first, FREE, PlanLimits())
    assert cheap.moves.sum() > 0
    assert cheap.after[0] < cheap.before[0]
    few = plan_next(rows_of(loads), shape, first, FREE, PlanLimits(max_moves=1))
    assert 0 < few.moves.sum() <= 1


@pytest.mark.parametrize("name", [n for n in POLICIES if n != "oracle"])
def test_policies_answer_any_history(name: str) -> None:
    rng = np.random.default_rng(0)
    shape = ClusterShape(3, 4)
    current = Placement.first(2, 9, 3, 4)
    for steps in (1, 2, 50):
        loads = rng.integers(0, 50, (steps, 2, 9))
        situation = Situation(loads, current, shape, CostModel(), 20, free=steps == 1)
        check = ask(load_policy(name), situation)
        assert check.layers == 2
        assert check.experts == 9


def test_eplb_copies_the_largest_load_per_copy() -> None:
    load = np.array([[90.0, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86]])
    assert replicas(load, 16)[0].tolist() == [1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1]


def test_copies_never_cost_time_at_any_batch() -> None:
    """Where reading a slot's weights costs 125 tokens: time with a quarter more slots over that without, per batch."""
    for row in ratios(10, limits=PlanLimits(layer_seconds=5.0)):  # never reached: no clock decides
        assert float(str(row["with floor"])) <= 1.0 + 1e-9, row


def test_a_rank_that_joins_with_nothing_is_filled() -> None:
    rng = np.random.default_rng(0)
    loads = rng.poisson(40 * rng.dirichlet(np.full(32, 3.0)) * 32, (20, 1, 32))
    rows, shape = rows_of(loads), ClusterShape(4, 14)
    away = replace(shape, dead=frozenset({2}))
    table = repaired(loads.mean(axis=0), away, Placement.first(1, 32, 4, 14)).astype(np.int64)
    placement = Placement(0, 4, 14, table)
    placement = plan_next(rows, away, placement, FREE, PlanLimits(layer_seconds=1.0)).placement
    assert predicted_excess(rows, placement, away) < 0.01, "the mean is that of the ranks there are"
    assert predicted_excess(rows, placement, shape) > 0.3
    after = plan_next(rows, shape, placement, FREE, PlanLimits(layer_seconds=1.0)).placement
    assert 2 in after.ranks_used
    assert predicted_excess(rows, after, shape) < 0.03


def test_experts_come_from_the_same_node_where_that_does_as_well() -> None:
    rng = np.random.default_rng(1)
    shape = ClusterShape(8, 10, ranks_per_node=4)
    current = Placement.first(1, 64, 8, 10)
    near = far = both = 0
    for _ in range(12):
        loads = rng.poisson(200 * rng.dirichlet(np.full(64, 1.5)) * 64, (20, 1, 64))
        dear = replace(CostModel(expert_bytes=2e7), far=40.0)
        for cost in (dear, replace(dear, far=1.0)):
            after = plan_next(rows_of(loads), shape, current, cost, PlanLimits(layer_seconds=1.0)).placement
            moved, between = int(fetches(current, after).sum()), int(far_fetches(current, after, shape).sum())
            assert 0 <= between <= moved
            if cost is dear:
                near, both = near + between, both + moved
            else:
                far += between
    assert both > 0, "moves within a node still pay"
    assert near < 0.7 * far
    assert int(far_fetches(current, current, shape).sum()) == 0
