"""`simulate --actors`: the real supervisor, ranks, exchange, balancer and migration on CPU actors, with made traffic.

Experts compute for real and then wait, so that a rank's time per step is known although all share a few cores. What the
model of the split predicts, tokens per rank and time per step, stands beside what was counted and timed.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from cluster.balance.policies.registry import load_policy, user_folder
from cluster.balance.shape import ClusterShape
from cluster.config import ServeConfig
from cluster.plan import Balancing, ServePlan
from cluster.serve.launch import RayCluster
from cluster.serve.loading import LoadingView
from cluster.simulate.actor_run import WARM, ActorRun, ActorSettings, Seen, paced_seconds, summary
from cluster.simulate.members import check_changes
from cluster.simulate.model_folder import write_experts
from cluster.simulate.pace import Pace
from cluster.simulate.source import SourceProcess
from cluster.simulate.synthetic import SyntheticOrders
from experts.crew import most_threads
from experts.epoch.membership import Member
from experts.errors import UserError
from experts.exchange.registry import exchange_for
from experts.slots.slots import slot_bytes
from experts.worker.remote import wait
from router_svc.engine.config import EngineConfig
from router_svc.models.registry import load_spec

IntArray = npt.NDArray[np.int64]


def run_actors(
    loads: IntArray, policy: str, settings: ActorSettings, tick: Callable[[int], None] = lambda done: None
) -> ActorRun:
    """One run on a private Ray. Raises UserError for settings that can't be."""
    _, layers, experts = loads.shape
    shape = ClusterShape(
        settings.ranks, settings.slots_per_rank, speeds=settings.speeds, min_copies=settings.min_copies
    )
    shape.check(layers, experts)
    check_changes(settings.changes, shape, layers, experts, settings.steps)
    load_policy(policy, seconds=settings.policy_seconds).close()
    if settings.top_k > experts:
        raise UserError(f"{settings.top_k} of {experts} experts", "at most one pick per expert", "--top-k")
    with tempfile.TemporaryDirectory(prefix="tokenyard-") as folder:
        write_experts(Path(folder), layers, experts, settings.top_k)
        with RayCluster(_orders(Path(folder), loads, policy, settings)) as cluster:
            with LoadingView(cluster.plan.seats) as view:
                cluster.start_ranks(view)
            seen = _drive(cluster, settings, _overhead(cluster, loads, settings), tick)
    return summary(loads, policy, settings, seen, slot_bytes(cluster.plan.spec.experts, torch.float32))


def _orders(folder: Path, loads: IntArray, policy: str, settings: ActorSettings) -> SyntheticOrders:
    _, layers, experts = loads.shape
    spec = load_spec(folder)
    config = ServeConfig(
        attention_workers=1, expert_workers=settings.ranks, dtype="float32", enable_eplb=policy != "none",
        eplb_policy=policy, eplb_interval=settings.interval, eplb_policy_timeout=settings.policy_seconds,
    )  # fmt: skip
    engine = EngineConfig(128, 1, settings.tokens, 1, 1)
    present = sorted(set(range(settings.ranks)) - settings.shape.dead)
    seats = (*(Member(rank, "expert") for rank in present), Member(settings.ranks, "attention"))
    plan = ServePlan(
        folder, spec, config, "simulation", torch.float32, "cpu", exchange_for("cpu"), engine,
        settings.first(layers, experts), seats, most_threads(), Balancing(policy != "none"), settings.min_copies,
        user_folder(),
    )  # fmt: skip
    return SyntheticOrders(plan, settings.tokens, loads, Pace(settings.token_seconds, settings.floor), settings.speeds)


def _overhead(cluster: RayCluster, loads: IntArray, settings: ActorSettings) -> float:
    """Seconds of a step beside the experts' pace: the calibration that predictions add."""
    source = _source(cluster)
    wait(source.go(WARM))
    while wait(source.left()):
        time.sleep(0.05)
    seconds = wait(source.results()).seconds
    return max(float(np.median(seconds[2:]) - np.median(paced_seconds(loads, settings)[2:])), 0.0)


def _drive(cluster: RayCluster, settings: ActorSettings, overhead: float, tick: Callable[[int], None]) -> Seen:
    """Run the steps, and have ranks leave and join as they go on."""
    supervisor = cluster.supervisor
    source = _source(cluster)
    wait(source.go(settings.steps))
    due, orders = list(settings.changes), []
    while left := wait(source.left()):
        done = settings.steps - left
        tick(done)
        if due and done >= due[0].step:
            change, asked = due.pop(0), time.time()
            wait((supervisor.admit if change.joins else supervisor.release)(change.rank))
            orders.append((change, asked, time.time(), settings.steps - wait(source.left())))
        else:
            time.sleep(0.02 if due else 0.2)
    results = wait(source.results())
    if results.lost:
        raise RuntimeError(results.lost)
    if due:
        raise UserError(f"{settings.steps} steps, over before {due[0].option}", "more steps", "--steps")
    return Seen(wait(supervisor.status(True)), results, wait(supervisor.counted()), overhead, orders)


def _source(cluster: RayCluster) -> SourceProcess:
    return cast(SourceProcess, wait(cluster.supervisor.source()))
