"""Planner: from rows of expected loads and the placement in use to the next placement, a few priced moves away.

Every layer on its own. Experts that lost their only copy get a slot first; then the search of kernels/improve.c adds,
replaces and exchanges copies while each move earns more than its price, or until the time budget ends.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cluster.balance.cost import CostModel
from cluster.balance.forecast import Rows
from cluster.balance.kernel import LayerPlanner, SearchLimits
from cluster.balance.shape import ClusterShape
from experts.placement import ABSENT, EMPTY, Placement

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PlanLimits:
    """max_moves: per layer, None = as many as pay
    doubt: standard errors taken off a gain before it pays
    layer_seconds: of search per layer, None = by its experts
    tried: candidates solved in full per move
    threads: layers searched at once
    alike: weight of a row in which all experts have equal loads, beside those seen: what is level then can be divided by whole
        experts, as small batches need it
    """

    max_moves: int | None = None
    doubt: float = 1.0
    layer_seconds: float | None = None
    tried: int = 32
    threads: int = 1
    alike: float = 0.05

    def seconds(self, experts: int) -> float:
        """Time budget of one layer: 1.8 ms for 64 experts, 8.9 ms for 256."""
        return 1.8e-3 * (experts / 64) ** 1.15 if self.layer_seconds is None else self.layer_seconds


@dataclass(frozen=True, slots=True)
class _Found:
    """table: int64 [L, R*S]
    before, after: [L] excess
    """

    table: npt.NDArray[np.int64]
    before: FloatArray
    after: FloatArray


@dataclass(frozen=True, slots=True)
class Plan:
    """placement: the next one
    before, after: [L] predicted excess (slowest rank over the mean, minus 1)
    moves: [L] experts that some rank must fetch
    seconds: spent planning
    """

    placement: Placement
    before: FloatArray
    after: FloatArray
    moves: npt.NDArray[np.int64]
    seconds: float


def plan_first(rows: Rows, shape: ClusterShape, limits: PlanLimits, version: int = 0) -> Plan:
    """A placement from nothing: full layout, then a search where moves are free."""
    started = time.perf_counter()
    start = greedy_layout(np.einsum("w,lwe->le", rows.weight, rows.loads), shape)
    layers = len(start)
    found = _search(rows, shape, start, limits, 0.0, 0.0)
    placement = Placement(version, shape.ranks, shape.slots_per_rank, found.table, "plan")
    none = np.zeros(layers, dtype=np.int64)
    return Plan(placement, found.before, found.after, none, time.perf_counter() - started)


def greedy_layout(load: FloatArray, shape: ClusterShape) -> npt.NDArray[np.int16]:
    """int16 [L, R*S]: a valid layout for mean loads [L, E], at once. Raises UserError when the shape can't hold it."""
    shape.check(*load.shape)
    empty = np.full(shape.slots, EMPTY, dtype=np.int16)
    empty[sorted(shape.absent)] = ABSENT
    one = np.ones(1)
    planners = [LayerPlanner(shape, row[None], one) for row in load]
    return np.stack([planner.repair(planner.layout(empty)) for planner in planners])


def plan_next(rows: Rows, shape: ClusterShape, current: Placement, cost: CostModel, limits: PlanLimits) -> Plan:
    """The placement that follows `current`, whose version it raises by one if anything changed.

    Copies on dead ranks are forgotten; what remains keeps its slot unless a move that pays takes it.
    """
    layers, _, experts = rows.loads.shape
    shape.check(layers, experts)
    current.check_fits(layers, experts)
    assert current.slot_expert.shape[1] == shape.slots, (current.slot_expert.shape, shape.slots)
    started = time.perf_counter()
    start = repaired(np.einsum("w,lwe->le", rows.weight, rows.loads), shape, current)
    found = _search(rows, shape, start, limits, cost.price(layers), cost.far)
    if bool((found.table == current.slot_expert).all()):
        none = np.zeros(layers, dtype=np.int64)
        return Plan(current, found.before, found.after, none, time.perf_counter() - started)
    placement = Placement(current.version + 1, shape.ranks, shape.slots_per_rank, found.table, "plan")
    return Plan(placement, found.before, found.after, fetches(current, placement), time.perf_counter() - started)


def repaired(load: FloatArray, shape: ClusterShape, current: Placement) -> npt.NDArray[np.int16]:
    """int16 [L, R*S]: `current` without the copies on dead ranks, and with those that every expert must have.

    load: [L, E] mean tokens. Nothing else moves, so only what is missing is fetched.
    """
    table = current.slot_expert.astype(np.int16)
    if not shape.dead and shape.copies_kept(load.shape[1]) == 1:
        return table
    for rank in shape.dead:
        own = table[:, rank * shape.slots_per_rank : (rank + 1) * shape.slots_per_rank]
        own[own != ABSENT] = EMPTY
    one = np.ones(1)
    return np.stack([LayerPlanner(shape, row[None], one).repair(held) for row, held in zip(load, table, strict=True)])


def fetches(before: Placement, after: Placement) -> npt.NDArray[np.int64]:
    """[L] experts that ranks must fetch: (rank, expert) pairs that are new. Moves inside a rank cost nothing."""
    new = held_by_rank(after, before.experts) > held_by_rank(before, before.experts)
    counts: npt.NDArray[np.int64] = new.sum(axis=(1, 2))
    return counts


def far_fetches(before: Placement, after: Placement, shape: ClusterShape) -> npt.NDArray[np.int64]:
    """[L] of `fetches`, those whose node held no copy before."""
    node = shape.node
    if node is None:
        return np.zeros(before.layers, dtype=np.int64)
    old, new = held_by_rank(before, before.experts), held_by_rank(after, before.experts)
    on_node = np.stack([old[:, node == own].any(axis=1) for own in node.tolist()], axis=1)
    counts: npt.NDArray[np.int64] = (new & ~old & ~on_node).sum(axis=(1, 2))
    return counts


def held_by_rank(placement: Placement, experts: int) -> npt.NDArray[np.bool_]:
    """[L, R, E] whether a rank holds an expert."""
    table = placement.slot_expert.reshape(placement.layers, placement.ranks, placement.slots_per_rank)
    held = np.zeros((placement.layers, placement.ranks, experts + 1), dtype=np.bool_)
    np.put_along_axis(held, np.where(table < 0, experts, table), True, axis=2)
    return held[:, :, :experts]


def _search(
    rows: Rows, shape: ClusterShape, start: npt.NDArray[np.int16], limits: PlanLimits, price: float, far: float
) -> _Found:
    """Every layer's search from its row of `start` [L, R*S].

    price: excess that a move must save
    far: how much more between nodes
    """
    layers, _, experts = rows.loads.shape
    found = _Found(np.empty((layers, shape.slots), dtype=np.int64), np.zeros(layers), np.zeros(layers))
    speed = float(sum(1 / pace for pace in shape.pace if pace))
    moves = 1 << 20 if limits.max_moves is None else limits.max_moves

    def one(layer: int) -> None:
        total = float(rows.weight @ rows.loads[layer].sum(axis=1))
        mean = total / speed
        search = SearchLimits(
            price * mean,
            far * price * mean,
            limits.doubt if price else 0.0,
            moves,
            limits.tried,
            limits.seconds(experts),
        )
        loads = np.concatenate([rows.loads[layer], np.full((1, experts), total / experts)])
        planner = LayerPlanner(shape, loads, np.append((1 - limits.alike) * rows.weight, limits.alike))
        found.table[layer], slow, quick = planner.improve(start[layer], search)
        if quick > slow:  # the search lowers a smooth stand-in for the slowest rank's time; in the end that time counts
            found.table[layer], slow, quick = planner.improve(start[layer], replace(search, max_moves=0))
        if mean:
            found.before[layer], found.after[layer] = slow / mean - 1, quick / mean - 1

    if limits.threads == 1:
        for layer in range(layers):
            one(layer)
    else:  # the C search runs outside Python's lock
        with ThreadPoolExecutor(limits.threads) as pool:
            list(pool.map(one, range(layers)))
    return found
