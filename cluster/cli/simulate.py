"""`tokenyard simulate`: policies on made or recorded traffic, in numpy or over real actors."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cluster.balance.cost import (
    A100_STEP_SECONDS,
    HORIZON,
    HUNYUAN_EXPERT_BYTES,
    NETWORK_SLOWER,
    NVLINK_FREE,
    CostModel,
)
from cluster.balance.kernel import check_available
from cluster.balance.policies.registry import load_policy
from cluster.balance.shape import ClusterShape
from cluster.balance.trace import LoadTrace
from cluster.cli.generate import AsJson
from cluster.cli.lazy import load
from cluster.cli.plan import Bandwidth, ExpertBytes, Far, Horizon, MinCopies, PerNode, Spread, StepSeconds
from cluster.simulate.capacity import Load
from cluster.simulate.exchange import EXCHANGES
from cluster.simulate.members import check_changes, parse_changes
from cluster.simulate.replay import Replay, ReplaySettings, replay
from cluster.simulate.report import html_report
from cluster.simulate.traffic import Traffic, make_loads
from experts.errors import UserError

Number = Optional[int]  # noqa: UP045


def simulate(
    loads: Annotated[Optional[Path], typer.Argument(metavar="[LOADS.npz]", help="Recorded loads.")] = None,  # noqa: UP045
    regime: Annotated[str, typer.Option("--regime", metavar="NAME", help="Made traffic instead.")] = "",
    ranks_text: Annotated[
        str, typer.Option("--ranks", metavar="R", help="Ranks with experts; with --hardware several, as in 8,16,320.")
    ] = "8",
    slots_per_rank: Annotated[
        Number, typer.Option("--slots-per-rank", metavar="S", help="Default: a quarter spare.")
    ] = None,
    policy: Annotated[list[str], typer.Option("--policy", metavar="NAME|module:Class", help="May be repeated.")] = [],  # noqa: B006
    layers: Annotated[int, typer.Option("--layers", metavar="L", help="Of made traffic.", min=1)] = 32,
    experts: Annotated[int, typer.Option("--experts", metavar="E", help="Per layer.", min=1)] = 64,
    top_k: Annotated[int, typer.Option("--top-k", metavar="K", help="Experts of a token.", min=1)] = 8,
    tokens: Annotated[int, typer.Option("--tokens", metavar="B", help="Of a step.", min=1)] = 2048,
    steps: Annotated[
        Number,
        typer.Option("--steps", metavar="T", help="To run. Default: all recorded ones, or 500 made ones.", min=2),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of made traffic.", min=0)] = 0,
    interval: Annotated[int, typer.Option("--interval", metavar="N", help="Steps between plans.", min=1)] = 20,
    window: Annotated[
        int, typer.Option("--window", metavar="N", help="Steps that a policy may look back.", min=1)
    ] = 200,
    split: Annotated[str, typer.Option("--split", metavar="exact|even", help="Default: the policy's own.")] = "",
    policy_timeout: Annotated[
        int, typer.Option("--eplb-policy-timeout", metavar="S", help="For a policy module:Class to answer.", min=1)
    ] = 30,
    floor: Annotated[
        float,
        typer.Option("--floor", metavar="N", help="Tokens that reading an expert's weights costs the split.", min=0),
    ] = 0.0,
    ranks_per_node: PerNode = 0,
    spread: Spread = False,
    min_copies: MinCopies = 1,
    step_seconds: StepSeconds = A100_STEP_SECONDS,
    expert_bytes: ExpertBytes = HUNYUAN_EXPERT_BYTES,
    bandwidth: Bandwidth = NVLINK_FREE,
    horizon: Horizon = HORIZON,
    far: Far = NETWORK_SLOWER,
    actors: Annotated[bool, typer.Option("--actors", help="Real actors on this machine's CPUs.")] = False,
    token_seconds: Annotated[
        float, typer.Option("--token-seconds", metavar="S", help="With --actors: an expert's time per token.", min=0)
    ] = 20e-6,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", help="With --actors: runs of each policy.", min=1)
    ] = 1,
    leave: Annotated[
        list[str], typer.Option("--leave", metavar="R@STEP", help="Rank R leaves at a step. May be repeated.")
    ] = [],  # noqa: B006
    join: Annotated[
        list[str], typer.Option("--join", metavar="R@STEP", help="Rank R, away before, joins. May be repeated.")
    ] = [],  # noqa: B006
    speeds: Annotated[
        str, typer.Option("--speeds", metavar="S,…", help="Relative speed of each rank; --actors has to find out.")
    ] = "",
    hardware: Annotated[str, typer.Option("--hardware", metavar="NAME", help="Predict a step's time instead.")] = "",
    model: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--model", metavar="DIR", help="With --hardware: a folder with config.json."),
    ] = None,
    context: Annotated[
        int, typer.Option("--context", metavar="C", help="With --hardware: tokens in the cache.", min=1)
    ] = 2048,
    weights: Annotated[
        str, typer.Option("--weights", metavar="bfloat16|fp8|int8|int4", help="With --hardware.")
    ] = "bfloat16",
    attention_ranks: Annotated[
        int, typer.Option("--attention-ranks", metavar="A", help="With --hardware: 0 = each rank holds both.", min=0)
    ] = 0,
    excess: Annotated[
        float, typer.Option("--excess", metavar="X", help="With --hardware: busiest over mean, less 1.", min=0)
    ] = 0.02,
    prefill: Annotated[bool, typer.Option("--prefill", help="With --hardware: the tokens are of prompts.")] = False,
    shards: Annotated[
        int, typer.Option("--shards", metavar="T", help="With --hardware: ranks that split attention.", min=1)
    ] = 1,
    exchange: Annotated[
        str, typer.Option("--exchange", metavar="|".join(EXCHANGES), help="With --hardware: how rows travel.")
    ] = "bf16",
    overlap: Annotated[
        bool, typer.Option("--overlap", help="With --hardware: half a batch travels while the other is computed.")
    ] = False,
    report: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--report", metavar="FILE.html", help="One page with plots."),
    ] = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead.")] = False,
) -> None:
    """Judge balancing policies without a model."""
    counts = _ranks(ranks_text)
    if hardware:
        _capacity(
            hardware,
            model,
            counts,
            Load(
                tokens,
                context,
                weights,
                slots_per_rank or 0,
                excess,
                attention_ranks,
                prefill,
                shards,
                exchange,
                overlap,
            ),
            as_json,
        )
        return
    if len(counts) > 1:
        raise UserError(repr(ranks_text), "one number, or --hardware", "--ranks")
    ranks = counts[0]
    if split not in ("", "exact", "even"):
        raise UserError(repr(split), "exact or even", "--split")
    cost = CostModel(step_seconds, expert_bytes, bandwidth, horizon, far)
    cost.check()
    if loads is None:
        table, origin = _made(Traffic(regime or "zipf", steps or 500, layers, experts, top_k, tokens, seed))
    else:
        table, origin = _recorded(loads, regime, steps)
    experts = table.shape[2]
    whole = steps if actors and steps else len(table)  # actors begin again after the last one
    slots = slots_per_rank if slots_per_rank is not None else -(-experts * 5 // (4 * max(ranks, 1)))
    shape = ClusterShape(ranks, slots, ranks_per_node, speeds=_speeds(speeds), spread=spread, min_copies=min_copies)
    shape.check(table.shape[1], experts)
    changes = parse_changes(leave, join)
    check_changes(changes, shape, table.shape[1], experts, whole)
    if report is not None and not report.resolve().parent.is_dir():
        raise UserError(f"no folder {report.resolve().parent}", "a folder that exists", "--report")
    check_available()  # a planner that is compiled first would count that as its own time
    if actors:
        run = load("cluster.simulate.actors")  # Ray, which the plain simulation does without
        settings = run.ActorSettings(
            ranks, slots, tokens, top_k, whole, interval, token_seconds, changes=changes, speeds=shape.speeds,
            policy_seconds=policy_timeout, min_copies=min_copies,
        )  # fmt: skip
        _actors(table, policy or ["none", "tokenyard"], settings, rounds, as_json)
        return
    done = []
    with ExitStack() as policies:
        loaded = [
            policies.enter_context(closing(load_policy(name, seconds=policy_timeout)))
            for name in policy or ["none", "eplb", "tokenyard"]
        ]
        for one in loaded:
            settings = ReplaySettings(interval, window, split, floor, cost=cost, changes=changes)
            with progress(one.name, len(table)) as tick:
                done.append(replay(table, shape, one, settings, tick))
            if as_json:
                print(json.dumps(figures(done[-1])), flush=True)
    if report is not None:
        shown = {
            "steps": len(table),
            "layers": table.shape[1],
            "experts": experts,
            "ranks": ranks,
            "slots per rank": slots,
        }
        report.write_text(html_report(done, origin | shown | {"interval": interval, "split": split or "the policy's"}))
    if as_csv:
        print(",".join(figures(done[0])))
        print("\n".join(",".join(map(str, figures(one).values())) for one in done))
    elif not as_json:
        _show(done)


def _made(traffic: Traffic) -> tuple[npt.NDArray[np.int64], dict[str, object]]:
    """Loads [T, L, E] that are made, and what of."""
    traffic.check()
    made = {"regime": traffic.regime, "tokens": traffic.tokens, "top k": traffic.top_k, "seed": traffic.seed}
    return make_loads(traffic), made


def _recorded(path: Path, regime: str, steps: int | None) -> tuple[npt.NDArray[np.int64], dict[str, object]]:
    """Loads [T, L, E] of a file, all steps or the first ones, and where they are from."""
    if regime:
        raise UserError(f"a trace and the regime {regime!r}", "one of them", "simulate")
    trace = LoadTrace.load(path)
    if steps is not None and steps < len(trace.loads):
        print(f"tokenyard: the first {steps} of {len(trace.loads)} steps of {path}", file=sys.stderr)
    return trace.loads[:steps], {"trace": str(path), "model": trace.model}


def _ranks(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(repr(text), "a number, or several as in 8,16,320", "--ranks") from None


def _speeds(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UserError(repr(text), "numbers, as in 1,1,1,0.5", "--speeds") from None


def _capacity(name: str, model: Path | None, ranks: list[int], wanted: Load, as_json: bool) -> None:
    if model is None:
        raise UserError("no --model", "a folder with config.json", "--hardware")
    capacity = load("cluster.cli.capacity")  # torch, which the simulation does without
    capacity.run(name, model, ranks, wanted, as_json)


def figures(one: Replay) -> dict[str, Any]:
    """A policy's numbers, as `--json` prints them."""
    return {
        "policy": one.policy,
        "balancedness": round(one.balancedness, 6),
        "makespan_ratio": round(1 + one.excess, 6),
        "excess": round(one.excess, 6),
        "experts_moved": int(one.moves.sum()),
        "experts_moved_between_nodes": int(one.far_moves.sum()),
        "moves_per_layer": round(one.moves_per_layer, 4),
        "planner_seconds": round(float(one.planner_seconds.mean()) if len(one.planner_seconds) else 0.0, 6),
        "steps": len(one.busiest),
    }


@contextmanager
def progress(name: str, steps: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, in a terminal."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(name, total=steps)
        yield lambda done: bar.update(task, completed=done)


def _show(done: list[Replay]) -> None:
    if not sys.stdout.isatty():
        for one in done:
            row = figures(one)
            print(
                f"{row['policy']}: excess {100 * row['excess']:.2f} %, balancedness {row['balancedness']:.4f}, "
                f"{row['experts_moved']} experts moved ({row['moves_per_layer']:.2f} a layer and replan), "
                f"planned in {1e3 * row['planner_seconds']:.1f} ms"
            )
        return
    table = Table(title=f"{len(done[0].busiest)} steps, {done[0].placement.ranks} ranks")
    for name in ("policy", "excess", "balancedness", "moved", "moves/layer", "plan"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for one in done:
        row = figures(one)
        table.add_row(
            row["policy"], f"{100 * row['excess']:.2f} %", f"{row['balancedness']:.4f}", str(row["experts_moved"]),
            f"{row['moves_per_layer']:.2f}", f"{1e3 * row['planner_seconds']:.1f} ms",
        )  # fmt: skip
    Console().print(table)


def _actors(
    loads: npt.NDArray[np.int64], policies: list[str], settings: Any, rounds: int, as_json: bool
) -> None:  # fmt: skip
    """settings: ActorSettings, whose module brings Ray."""
    run = load("cluster.simulate.actors")
    for _ in range(rounds):
        for name in policies:
            with progress(name, settings.steps) as tick:
                one = run.run_actors(loads, name, settings, tick)
            if as_json:
                print(json.dumps(one.figures()), flush=True)
                continue
            print(
                f"{name}: excess {100 * one.excess:.2f} % (first third {100 * one.excess_first:.2f}, last "
                f"{100 * one.excess_last:.2f}; {100 * one.excess_predicted:.2f} predicted), step {1e3 * one.step_median:.1f} ms "
                f"({1e3 * one.step_predicted:.1f} predicted; p99 {1e3 * one.step_p99:.1f}, {1e3 * one.moving_p99:.1f} while "
                f"moving), {one.moves} experts moved, answers within {one.error:.0e}",
                flush=True,
            )
            for change in one.changes:
                print(
                    f"  step {change.step}: rank {change.rank} {'joined' if change.joined else 'left'} within "
                    f"{change.seconds:.2f} s; longest time between steps meanwhile {1e3 * change.pause:.1f} ms "
                    f"({1e3 * change.usual:.1f} before)",
                    flush=True,
                )
