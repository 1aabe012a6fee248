"""Replay: a trace through a policy, as the live balancer would ask it, scored under the split.

Vectorised: layers on threads (the C loops run outside Python's lock). Shape letters: T steps, L layers, E experts,
R ranks.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from cluster.balance.cost import CostModel
from cluster.balance.kernel import LayerPlanner
from cluster.balance.planner import far_fetches, fetches
from cluster.balance.policies.base import Policy, Situation
from cluster.balance.policies.registry import ask
from cluster.balance.shape import ClusterShape
from cluster.simulate.members import MemberChange, away_at, check_changes, without_ranks
from experts.exchange.split import SplitPolicy, SplitTable, rank_tokens
from experts.machine import cores
from experts.placement import Placement

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """interval: steps between plans
    window: steps of history shown to a policy
    split: "exact", "even" or "" for the policy's own
    floor: tokens that reading a slot's weights costs the exact split, as in SplitPolicy
    start: the placement before the first plan, None = that plan is free and scoring starts with it
    changes: of the ranks that take part, each carried out with the first plan at or after its step
    """

    interval: int = 20
    window: int = 200
    split: str = ""
    floor: float = 0.0
    start: Placement | None = None
    cost: CostModel = field(default_factory=CostModel)
    changes: tuple[MemberChange, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """busiest, mean: float64 [T', L] tokens per scored step
    rank_share: float32 [T', R] tokens of each rank over the mean rank's, over all layers
    moves, far_moves: int64 [replans, L] experts fetched, and those of them from another node, the free plan left out
    planner_seconds: [replans]
    placement: the last
    replicas: int64 [L, E] of it
    first_step: of the scored ones
    """

    policy: str
    busiest: FloatArray
    mean: FloatArray
    rank_share: npt.NDArray[np.float32]
    moves: IntArray
    far_moves: IntArray
    planner_seconds: FloatArray
    placement: Placement
    first_step: int

    @property
    def excess(self) -> float:
        """Sum of the busiest ranks' tokens over the sum of the means, minus 1."""
        total = float(self.mean.sum())
        return float(self.busiest.sum()) / total - 1 if total else 0.0

    @property
    def balancedness(self) -> float:
        """Mean over steps and layers of mean rank load / max rank load."""
        busy = self.busiest > 0
        return float((self.mean[busy] / self.busiest[busy]).mean()) if busy.any() else 1.0

    @property
    def moves_per_layer(self) -> float:
        """Experts fetched per layer and replan."""
        return float(self.moves.mean()) if self.moves.size else 0.0


def replay(
    loads: IntArray,
    shape: ClusterShape,
    policy: Policy,
    settings: ReplaySettings,
    tick: Callable[[int], None] = lambda done: None,
) -> Replay:
    """Run a trace [T, L, E] through a policy. tick: gets how many steps are done. Raises UserError."""
    steps, layers, experts = loads.shape
    shape.check(layers, experts)
    check_changes(settings.changes, shape, layers, experts, steps)
    current = settings.start or Placement.first(layers, experts, shape.ranks, shape.slots_per_rank)
    free = settings.start is None
    begin = settings.interval if free and steps > settings.interval else 0
    score = _Scores(steps - begin, layers, shape.ranks)
    moves: list[tuple[IntArray, IntArray]] = []
    seconds: list[float] = []
    how = settings.split or policy.split
    with ThreadPoolExecutor(cores()) as pool:
        for at in range(begin, steps, settings.interval):
            coming, past = loads[at : at + settings.interval], loads[max(0, at - settings.window) : at]
            now = replace(shape, dead=shape.dead | away_at(settings.changes, at))
            if current.ranks_used & now.dead:
                vacated = without_ranks(current, now, (past if at else coming).mean(axis=0))
                if not (free and at == begin):
                    moves.append((fetches(current, vacated), far_fetches(current, vacated, shape)))
                current = vacated
            if at:
                situation = Situation(
                    past, current, now, settings.cost, settings.interval,
                    free=free and at == begin, future=coming if policy.clairvoyant else None,
                )  # fmt: skip
                started = time.perf_counter()
                planned = ask(policy, situation)
                seconds.append(time.perf_counter() - started)
                if not situation.free:
                    moves.append((fetches(current, planned), far_fetches(current, planned, shape)))
                current = planned
            score.add(at - begin, rank_times(coming, current, now, how, pool, settings.floor))
            tick(min(at + settings.interval, steps))
    fetched = np.array(moves, dtype=np.int64).reshape(len(moves), 2, layers)
    return Replay(
        policy.name, score.busiest, score.mean, score.share(), fetched[:, 0], fetched[:, 1],
        np.array(seconds), current, begin,
    )  # fmt: skip


def rank_times(
    loads: IntArray,
    placement: Placement,
    shape: ClusterShape,
    how: str,
    pool: ThreadPoolExecutor | None = None,
    floor: float = 0.0,
) -> FloatArray:
    """[T, L, R] tokens of each rank, over its speed, when loads [T, L, E] are divided exactly or evenly.

    With a floor, tokens are divided in whole numbers by the very split of the ranks.
    """
    if how == "exact" and floor:
        return np.stack(
            [_whole(loads[:, layer], placement, layer, shape, floor) for layer in range(loads.shape[1])], axis=1
        )
    one = _exact if how == "exact" else _even
    work = ((loads[:, layer], placement.slot_expert[layer], shape) for layer in range(loads.shape[1]))
    each = (pool.map if pool else map)(lambda args: one(*args), work)
    return np.stack(list(each), axis=1)


def _exact(loads: IntArray, held: IntArray, shape: ClusterShape) -> FloatArray:
    rows = loads.astype(np.float64)
    return LayerPlanner(shape, rows, np.full(len(rows), 1 / len(rows))).times(held.astype(np.int16))


def _whole(loads: IntArray, placement: Placement, layer: int, shape: ClusterShape, floor: float) -> FloatArray:
    table = SplitTable.of(placement, layer, SplitPolicy(floor, shape.speeds))
    return np.stack([rank_tokens(table, np.append(0, row)) for row in loads]) * shape.pace


def _even(loads: IntArray, held: IntArray, shape: ClusterShape) -> FloatArray:
    """Every slot that holds an expert gets an equal part, twins on one rank too."""
    pace = shape.pace
    usable = np.where(pace[np.arange(shape.slots) // shape.slots_per_rank] > 0, held, -1)
    copies = np.bincount(usable[usable >= 0], minlength=loads.shape[1])
    part = np.zeros((loads.shape[1], shape.ranks))
    slots = np.flatnonzero(usable >= 0)
    np.add.at(part, (usable[slots], slots // shape.slots_per_rank), 1.0)
    return np.asarray(loads @ (part / np.maximum(copies, 1)[:, None] * pace))


class _Scores:
    def __init__(self, steps: int, layers: int, ranks: int) -> None:
        self.busiest = np.zeros((steps, layers))
        self.mean = np.zeros((steps, layers))
        self._ranks = np.zeros((steps, ranks))

    def add(self, at: int, times: FloatArray) -> None:
        """times: [T', L, R]; a rank without speed is idle, so the mean is over the ranks that work."""
        rows = slice(at, at + len(times))
        working = (times.sum(axis=(0, 1)) > 0).sum() or 1
        self.busiest[rows] = times.max(axis=2)
        self.mean[rows] = times.sum(axis=2) / working
        self._ranks[rows] = times.sum(axis=1)

    def share(self) -> npt.NDArray[np.float32]:
        mean = self._ranks.mean(axis=1, keepdims=True)
        return np.divide(self._ranks, mean, out=np.ones_like(self._ranks), where=mean > 0).astype(np.float32)
