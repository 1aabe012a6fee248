"""`bench balance`: excess and moves of every policy on made traffic, and the times of planner and split.

Traffic, excess and cases as in docs/balancing.md; every figure is of this run on this machine.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from cluster.balance.cost import CostModel
from cluster.balance.forecast import forecast
from cluster.balance.planner import PlanLimits, greedy_layout, plan_first, repaired
from cluster.balance.policies.base import Policy, Situation
from cluster.balance.policies.eplb import EplbPolicy
from cluster.balance.policies.none import NoPolicy
from cluster.balance.policies.oracle import OraclePolicy
from cluster.balance.policies.registry import load_policy
from cluster.balance.policies.tokenyard import TokenyardPolicy
from cluster.balance.shape import ClusterShape
from cluster.simulate.replay import Replay, ReplaySettings, replay
from cluster.simulate.traffic import Traffic, make_loads
from experts.exchange.split import SplitTable, quotas
from experts.placement import Placement

# DeepSeek-V3 in fp8 over 200 Gb/s: 44 MB an expert; 58 layers of 8,192 tokens take 32 ranks some 25 ms.
_DEEPSEEK = CostModel(step_seconds=0.025, expert_bytes=44.0e6, bandwidth=25e9, horizon=1000)


@dataclass(frozen=True, slots=True)
class Case:
    """A model's layers and experts on ranks with slots, and its traffic."""

    name: str
    traffic: Traffic
    shape: ClusterShape
    cost: CostModel = field(default_factory=CostModel)
    regimes: tuple[str, ...] = ("zipf", "drift", "corr", "shift", "burst")


_HUNYUAN = Traffic("zipf")
CASES = (
    Case("hunyuan-8r-80s", _HUNYUAN, ClusterShape(8, 10)),
    Case("hunyuan-8r-72s", _HUNYUAN, ClusterShape(8, 9)),
    Case(
        "deepseek-32r-288s",
        Traffic("zipf", steps=400, layers=58, experts=256, tokens=8192),
        ClusterShape(32, 9),
        _DEEPSEEK,
        ("zipf", "drift", "corr"),
    ),
)


@dataclass(frozen=True, slots=True)
class Contestant:
    """A policy as it is judged: how often it plans and how its tokens are divided ("" = its own way)."""

    name: str
    make: Callable[[], Policy]
    interval: int = 20
    split: str = ""


def _ours(**changes: object) -> Callable[[], Policy]:
    limits = PlanLimits(threads=2)
    return lambda: TokenyardPolicy(limits, **changes)  # type: ignore[arg-type]


class _FullReplan(TokenyardPolicy):
    """Ours without increments: everything again at each turn."""

    def plan(self, situation: Situation) -> Placement:
        return super().plan(replace(situation, free=True))


CONTESTANTS = (
    Contestant("none", NoPolicy),
    Contestant("eplb", EplbPolicy, 100),
    Contestant("eplb every 20", EplbPolicy),
    Contestant("tokenyard", _ours()),
    Contestant("oracle", OraclePolicy),
)
PARTS = (
    Contestant("tokenyard", _ours()),
    Contestant("even split", _ours(), split="even"),
    Contestant("no increments", lambda: _FullReplan(PlanLimits(threads=2, layer_seconds=0.01))),
    Contestant("no moves", NoPolicy),
    Contestant("window 20 only", _ours(windows=(20,), trend=False)),
    Contestant("window 100 only", _ours(windows=(100,), trend=False)),
    Contestant("every 100", _ours(), 100),
    Contestant("eplb, exact split", EplbPolicy, 100, "exact"),
)


def contest(case: Case, regime: str, seed: int, one: Contestant) -> Replay:
    """One policy on one trace. Scored from the first replan on, which is free and comes after `interval` steps."""
    loads = make_loads(replace(case.traffic, regime=regime, seed=seed))
    settings = ReplaySettings(interval=one.interval, split=one.split, cost=case.cost)
    with closing(one.make()) as policy:
        return replay(loads, case.shape, policy, settings)


def lines(
    names: list[str], regimes: list[str], seeds: list[int], contestants: tuple[Contestant, ...]
) -> Iterator[dict[str, object]]:
    """One dict per case, regime, seed and policy, as `--json` prints them."""
    for case in CASES:
        if names and case.name not in names:
            continue
        for regime in regimes or case.regimes:
            for seed in seeds:
                for one in contestants:
                    done = contest(case, regime, seed, one)
                    yield {
                        "config": case.name,
                        "regime": regime,
                        "policy": one.name,
                        "seed": seed,
                        "excess": round(done.excess, 5),
                        "moves_per_layer": round(done.moves_per_layer, 3),
                        "planner_seconds": round(
                            float(done.planner_seconds[1:].mean() if len(done.planner_seconds) > 1 else 0), 5
                        ),
                        "split_microseconds": None,
                    }


def curve(case: Case, regime: str, seeds: list[int], horizons: tuple[float, ...]) -> Iterator[dict[str, object]]:
    """Excess against moves: the same policy with gains that are taken to last longer or shorter."""
    for horizon in horizons:
        done = [
            contest(replace(case, cost=replace(case.cost, horizon=horizon)), regime, seed, CONTESTANTS[3])
            for seed in seeds
        ]
        yield {
            "config": case.name, "regime": regime, "policy": f"tokenyard, horizon {horizon:g}", "seed": None,
            "excess": round(float(np.mean([d.excess for d in done])), 5),
            "moves_per_layer": round(float(np.mean([d.moves_per_layer for d in done])), 3),
            "planner_seconds": None, "split_microseconds": None,
        }  # fmt: skip


def curves(names: list[str], regimes: list[str], seed: int) -> Iterator[dict[str, object]]:
    """The curve of every named case and regime."""
    for case in CASES:
        for regime in regimes if case.name in names else ():
            yield from curve(case, regime, [seed], (10.0, 40.0, 200.0, 1000.0, 10000.0))


def timings() -> Iterator[dict[str, object]]:
    """Times of planning and splitting: the best of several rounds on one core, each on the same inputs."""
    for ranks, slots in ((32, 9), (64, 5), (128, 3), (320, 1)):
        loads = make_loads(Traffic("zipf", steps=40, layers=58, experts=256, tokens=8192 * ranks // 32, seed=1))
        shape = ClusterShape(ranks, slots)
        first = Placement.first(58, 256, ranks, slots)
        situation = Situation(loads, first, shape, CostModel(), 20)
        name = f"58x256, {ranks} ranks, {ranks * slots} slots"
        mean = loads.mean(axis=0)
        yield _timed(name, "full plan", partial(greedy_layout, mean, shape), 5)
        yield _timed(name, "full plan, eplb", partial(EplbPolicy().plan, situation), 1)
        planned = Placement(0, ranks, slots, greedy_layout(mean, shape).astype(np.int64))
        dead = replace(shape, dead=frozenset({1}))
        if dead.live_slots >= 256:
            yield _timed(name, "dead rank", partial(repaired, mean, dead, planned), 5)
    for case in CASES:
        yield from _split_times(case)


def _split_times(case: Case) -> Iterator[dict[str, object]]:
    for regime in case.regimes:
        loads = make_loads(replace(case.traffic, regime=regime, steps=80, layers=1, seed=2))
        plan = plan_first(forecast(loads[:40], 20), case.shape, PlanLimits())
        table = SplitTable.of(plan.placement, 0)
        counts = [np.append(0, row) for row in loads[40:, 0]]

        def once(table: SplitTable = table, counts: list[np.ndarray] = counts) -> None:
            for row in counts:
                quotas(table, row)

        seconds = _best(once, 20) / len(counts)
        yield {
            "config": case.name, "regime": regime, "policy": "split", "seed": 2, "excess": None,
            "moves_per_layer": None, "planner_seconds": None, "split_microseconds": round(seconds * 1e6, 2),
        }  # fmt: skip


def _timed(config: str, what: str, work: Callable[[], object], rounds: int) -> dict[str, object]:
    return {
        "config": config, "regime": "zipf", "policy": what, "seed": 1, "excess": None, "moves_per_layer": None,
        "planner_seconds": round(_best(work, rounds), 5), "split_microseconds": None,
    }  # fmt: skip


def _best(work: Callable[[], object], rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best


def show(found: Iterator[dict[str, object]], as_json: bool) -> None:
    """A line per case: JSON, or columns for people."""
    for line in found:
        if as_json:
            print(json.dumps(line), flush=True)
            continue
        cells = [
            f"{line['config']!s:32}",
            f"{line['regime']!s:8}",
            f"{line['policy']!s:24}",
            f"seed {line['seed']!s:4}",
        ]
        if line["excess"] is not None:
            cells.append(
                f"excess {100 * float(str(line['excess'])):6.2f} %  moves {float(str(line['moves_per_layer'])):7.3f}"
            )
        if line["planner_seconds"] is not None:
            cells.append(f"plan {1e3 * float(str(line['planner_seconds'])):8.2f} ms")
        if line["split_microseconds"] is not None:
            cells.append(f"split {line['split_microseconds']} us")
        print("  ".join(cells), flush=True)


def policy_contestants(names: list[str]) -> tuple[Contestant, ...]:
    """Those named, of the table above or from outside."""
    known = {one.name: one for one in CONTESTANTS}
    return tuple(known[n] if n in known else Contestant(n, partial(load_policy, n)) for n in names) or CONTESTANTS
