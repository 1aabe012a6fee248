"""`simulate --actors`: the real supervisor, ranks, exchange, balancer and migration on CPU actors, with made traffic.

Experts compute for real and then wait, so that a rank's time per step is known although all share a few cores. What the
model of the split predicts, tokens per rank and time per step, stands beside what was counted and timed.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch

from cluster.balance.policies.registry import load_policy
from cluster.balance.shape import ClusterShape
from cluster.config import ServeConfig
from cluster.launch import RayCluster
from cluster.loading import LoadingView
from cluster.plan import ServePlan
from cluster.simulate.model_folder import write_experts
from cluster.simulate.replay import ReplaySettings, replay
from cluster.simulate.synthetic import Synthetic
from experts.errors import UserError
from experts.membership import Member
from experts.pace import Pace
from experts.placement import Placement
from router_svc.engine.config import EngineConfig
from router_svc.models.registry import load_spec

IntArray = npt.NDArray[np.int64]
_WARM = 10  # steps before anything counts


@dataclass(frozen=True, slots=True)
class ActorSettings:
    """ranks with experts, of slots each; tokens of a step; top_k; token_seconds, floor: of the experts' pace (see
    experts.pace); interval: steps between plans; steps to run."""

    ranks: int
    slots_per_rank: int
    tokens: int
    top_k: int
    steps: int
    interval: int = 20
    token_seconds: float = 20e-6
    floor: float = 0.0


@dataclass(frozen=True, slots=True)
class ActorRun:
    """What one run gave. Times in s; excess: busiest rank over the mean, minus 1. first/last: third of the steps;
    predicted: by the split's model on the same loads; moving: steps that ran while experts moved."""

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

    def told(self) -> dict[str, Any]:
        """For `--json`."""
        return {name: getattr(self, name) for name in self.__slots__}


def run_actors(
    loads: IntArray, policy: str, settings: ActorSettings, tick: Callable[[int], None] = lambda done: None
) -> ActorRun:
    """One run on a private Ray. Raises UserError for settings that can't be."""
    _, layers, experts = loads.shape
    ClusterShape(settings.ranks, settings.slots_per_rank).check(layers, experts)
    load_policy(policy)
    if settings.top_k > experts:
        raise UserError(f"{settings.top_k} of {experts} experts", "at most one pick per expert", "--top-k")
    with tempfile.TemporaryDirectory(prefix="tokenyard-") as folder:
        write_experts(Path(folder), layers, experts, settings.top_k)
        cluster = RayCluster(_plan(Path(folder), loads, policy, settings))
        try:
            with LoadingView(cluster.plan.seats) as view:
                cluster.start_ranks(view)
            overhead = _overhead(cluster, settings, layers)
            status, results, counted = _drive(cluster, settings, tick)
        finally:
            cluster.stop()
    slot = 3 * 32 * 16 * 4
    return _summary(loads, policy, settings, status, results, counted, overhead, slot)


def _plan(folder: Path, loads: IntArray, policy: str, settings: ActorSettings) -> ServePlan:
    _, layers, experts = loads.shape
    spec = load_spec(folder)
    config = ServeConfig(
        attention_workers=1, expert_workers=settings.ranks, dtype="float32", enable_eplb=policy != "none",
        eplb_policy=policy, eplb_interval=settings.interval,
    )  # fmt: skip
    engine = EngineConfig(128, 1, settings.tokens, 1, 1)
    seats = (*tuple(Member(rank, "expert") for rank in range(settings.ranks)), Member(settings.ranks, "attention"))
    return ServePlan(
        folder, spec, config, "simulation", torch.float32, "cpu", engine,
        Placement.first(layers, experts, settings.ranks, settings.slots_per_rank), seats,
        Synthetic(settings.tokens, loads, Pace(settings.token_seconds, settings.floor)),
    )  # fmt: skip


def _overhead(cluster: RayCluster, settings: ActorSettings, layers: int) -> float:
    """Seconds of a step beside the experts' pace: the calibration that predictions add."""
    source = ray.get(cluster.supervisor.source.remote())
    ray.get(source.go.remote(_WARM))
    _await(source)
    seconds = ray.get(source.results.remote()).seconds
    counted = {step: busiest for step, busiest, _ in ray.get(cluster.supervisor.counted.remote())}
    paced = [busiest * settings.token_seconds for busiest in counted.values()]
    return max(float(np.median(seconds[2:]) - np.median(paced)), 0.0) if settings.floor == 0 else 0.0


def _drive(
    cluster: RayCluster, settings: ActorSettings, tick: Callable[[int], None]
) -> tuple[dict[str, Any], Any, list[tuple[int, int, float]]]:
    source = ray.get(cluster.supervisor.source.remote())
    ray.get(source.go.remote(settings.steps))
    while left := ray.get(source.left.remote()):
        tick(settings.steps - left)
        time.sleep(0.2)
    status = ray.get(cluster.supervisor.status.remote(True))
    results = ray.get(source.results.remote())
    if results.lost:
        raise RuntimeError(results.lost)
    return status, results, ray.get(cluster.supervisor.counted.remote())


def _await(source: Any) -> None:
    while ray.get(source.left.remote()):
        time.sleep(0.05)


def _summary(
    loads: IntArray, policy: str, settings: ActorSettings, status: dict[str, Any], results: Any,
    counted: list[tuple[int, int, float]], overhead: float, slot_bytes: int,
) -> ActorRun:  # fmt: skip
    """Numbers of the steps after the warm-up."""
    seconds = np.array(results.seconds[_WARM:])
    rows = np.array(sorted(counted)[_WARM:], dtype=np.float64)
    busiest, mean = rows[:, 1], rows[:, 2]
    third = max(len(busiest) // 3, 1)
    moving = _moving(results, status["events"])[_WARM:]
    predicted = _predicted(loads, policy, settings)
    return ActorRun(
        policy=policy,
        steps=len(seconds),
        excess_first=float(busiest[:third].sum() / mean[:third].sum() - 1),
        excess_last=float(busiest[-third:].sum() / mean[-third:].sum() - 1),
        excess=float(busiest.sum() / mean.sum() - 1),
        excess_predicted=predicted,
        step_median=float(np.median(seconds)),
        step_p99=float(np.quantile(seconds, 0.99)),
        step_predicted=float(np.median(busiest)) * settings.token_seconds + overhead,
        step_last=float(np.median(seconds[-third:])),
        step_longest_moving=float(seconds[moving].max()) if moving.any() else 0.0,
        moving_p99=float(np.quantile(seconds[moving], 0.99)) if moving.any() else 0.0,
        moves=status["experts_moved"],
        bytes_moved=status["experts_moved"] * slot_bytes,
        rebalances=status["rebalances"],
        error=results.error,
        placement_version=status["placement_version"],
    )


def _moving(results: Any, events: list[dict[str, Any]]) -> npt.NDArray[np.bool_]:
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


def _predicted(loads: IntArray, policy: str, settings: ActorSettings) -> float:
    """Excess of a replay of the same steps with the same policy, from the same first placement."""
    _, layers, experts = loads.shape
    steps = np.arange(_WARM, _WARM + settings.steps) % len(loads)
    shape = ClusterShape(settings.ranks, settings.slots_per_rank)
    start = Placement.first(layers, experts, settings.ranks, settings.slots_per_rank)
    known = ReplaySettings(interval=settings.interval, split="exact", start=start)
    return replay(loads[steps], shape, load_policy(policy), known).excess
