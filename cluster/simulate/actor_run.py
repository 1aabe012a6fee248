"""ActorRun: what a run over real actors gave, beside what was predicted for it. Numbers in, numbers out."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.balance.policies.registry import load_policy
from cluster.balance.shape import ClusterShape
from cluster.control.rebalance import Counted
from cluster.simulate.members import MemberChange, away_at, without_ranks
from cluster.simulate.replay import Replay, ReplaySettings, rank_times, replay
from cluster.simulate.source import SourceResults
from experts.placement import Placement

IntArray = npt.NDArray[np.int64]
WARM = 10  # steps before anything counts


@dataclass(frozen=True, slots=True)
class ActorSettings:
    """ranks with experts, of slots each
    tokens of a step
    top_k
    token_seconds, floor: of the experts' pace (see experts.pace)
    interval: steps between plans
    steps to run
    changes: of the ranks that take part
    speeds: relative, of each rank, empty = all alike
    policy_seconds: that a policy from outside may take to answer
    min_copies: ranks that hold each expert
    """

    ranks: int
    slots_per_rank: int
    tokens: int
    top_k: int
    steps: int
    interval: int = 20
    token_seconds: float = 20e-6
    floor: float = 0.0
    changes: tuple[MemberChange, ...] = ()
    speeds: tuple[float, ...] = ()
    policy_seconds: int = 30
    min_copies: int = 1

    @property
    def shape(self) -> ClusterShape:
        """The ranks before the first step."""
        dead = away_at(self.changes, 0)
        return ClusterShape(self.ranks, self.slots_per_rank, dead=dead, min_copies=self.min_copies)

    def first(self, layers: int, experts: int) -> Placement:
        """The placement to begin with."""
        whole = Placement.first(layers, experts, self.ranks, self.slots_per_rank)
        if not self.shape.dead:
            return whole
        return replace(without_ranks(whole, self.shape, np.ones((layers, experts))), version=0)


@dataclass(frozen=True, slots=True)
class Changed:
    """A rank that left or joined.

    step: that ran when it was done
    seconds: from the order on
    pause: longest time between the ends of two steps meanwhile
    usual: the median of that time before
    """

    rank: int
    joined: bool
    step: int
    seconds: float
    pause: float
    usual: float


@dataclass(frozen=True, slots=True)
class ActorRun:
    """What one run gave. Times in s.

    excess: tokens of the busiest rank over the mean, minus 1
    first/last: third of the steps
    predicted: by the split's model on the same loads (with speeds: of time)
    moving: steps that ran while experts moved
    """

    policy: str
    steps: int
    excess_first: float
    excess_last: float
    excess: float
    excess_predicted: float
    step_median: float
    step_p99: float
    step_predicted: float
    step_last: float
    step_longest_moving: float
    moving_p99: float
    moves: int
    bytes_moved: int
    rebalances: int
    error: float
    placement_version: int
    changes: tuple[Changed, ...]

    def figures(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a run left.

    status: with events
    overhead: s of a step beside the experts' pace
    orders: each change with when it was asked for and done, s of time.time, and the steps done by then
    """

    status: dict[str, Any]
    results: SourceResults
    counted: list[Counted]
    overhead: float
    orders: list[tuple[MemberChange, float, float, int]]


def summary(loads: IntArray, policy: str, settings: ActorSettings, seen: Seen, slot_bytes: int) -> ActorRun:
    """Numbers of the steps after the warm-up."""
    status, results = seen.status, seen.results
    seconds = np.array(results.seconds[WARM:])
    rows = sorted(seen.counted)[WARM:]
    busiest, mean = np.array([row.busiest for row in rows], dtype=float), np.array([row.mean for row in rows])
    third = max(len(busiest) // 3, 1)
    moving = _moving(results, status["events"])[WARM:]
    predicted = _predicted(loads, policy, settings, seen)
    paced = predicted.busiest.sum(axis=1) if settings.speeds else busiest
    return ActorRun(
        policy=policy,
        steps=len(seconds),
        excess_first=float(busiest[:third].sum() / mean[:third].sum() - 1),
        excess_last=float(busiest[-third:].sum() / mean[-third:].sum() - 1),
        excess=float(busiest.sum() / mean.sum() - 1),
        excess_predicted=predicted.excess,
        step_median=float(np.median(seconds)),
        step_p99=float(np.quantile(seconds, 0.99)),
        step_predicted=float(np.median(paced)) * settings.token_seconds + seen.overhead,
        step_last=float(np.median(seconds[-third:])),
        step_longest_moving=float(seconds[moving].max()) if moving.any() else 0.0,
        moving_p99=float(np.quantile(seconds[moving], 0.99)) if moving.any() else 0.0,
        moves=status["experts_moved"],
        bytes_moved=status["experts_moved"] * slot_bytes,
        rebalances=status["rebalances"],
        error=results.error,
        placement_version=status["placement_version"],
        changes=tuple(_changed(results, *order) for order in seen.orders),
    )


def paced_seconds(loads: IntArray, settings: ActorSettings) -> npt.NDArray[np.float64]:
    """[WARM] what the experts' pace makes of the first steps."""
    shape = replace(settings.shape, speeds=settings.speeds)
    times = rank_times(loads[np.arange(WARM) % len(loads)], settings.first(*loads.shape[1:]), shape, "exact")
    seconds: npt.NDArray[np.float64] = times.max(axis=2).sum(axis=1) * settings.token_seconds
    return seconds


def _moving(results: SourceResults, events: Sequence[dict[str, Any]]) -> npt.NDArray[np.bool_]:
    """Which steps ran between a "rebalance" event and its "moved"."""
    started = np.array(results.started)
    ended = started + np.array(results.seconds)
    hit = np.zeros(len(started), dtype=bool)
    begun = None
    for event in events:
        if event["kind"] == "rebalance":
            begun = event["seconds"]
        elif event["kind"] == "moved" and begun is not None:
            hit |= (ended >= begun) & (started <= event["seconds"] + 0.1)
            begun = None
    return hit


def _changed(results: SourceResults, change: MemberChange, asked: float, done: float, step: int) -> Changed:
    ended = np.array(results.started) + np.array(results.seconds)
    gaps = np.diff(ended)
    meanwhile = (ended[1:] >= asked) & (ended[:-1] <= done)
    before = gaps[ended[1:] < asked][-100:]
    return Changed(
        change.rank, change.joins, step, done - asked, float(gaps[meanwhile].max(initial=0.0)),
        float(np.median(before)) if len(before) else 0.0,
    )  # fmt: skip


def _predicted(loads: IntArray, policy: str, settings: ActorSettings, seen: Seen) -> Replay:
    """A replay of the same steps with the same policy, from the same first placement."""
    _, layers, experts = loads.shape
    steps = np.arange(WARM, WARM + settings.steps) % len(loads)
    last = settings.steps - 1
    changes = tuple(replace(change, step=min(max(step, 1), last)) for change, _, _, step in seen.orders)
    start = settings.first(layers, experts)
    known = ReplaySettings(interval=settings.interval, split="exact", start=start, changes=changes)
    shape = ClusterShape(
        settings.ranks, settings.slots_per_rank, speeds=settings.speeds, min_copies=settings.min_copies
    )
    with closing(load_policy(policy, seconds=settings.policy_seconds)) as judged:
        return replay(loads[steps], shape, judged, known)
