"""`tokenyard plan`: a placement from recorded loads, by the cluster's own planner."""

import json
import os
from pathlib import Path
from typing import Annotated, Optional

import numpy as np
import typer

from cluster.balance.cost import (
    A100_STEP_SECONDS,
    HORIZON,
    HUNYUAN_EXPERT_BYTES,
    NETWORK_SLOWER,
    NVLINK_FREE,
    CostModel,
)
from cluster.balance.forecast import forecast
from cluster.balance.kernel import check_available
from cluster.balance.planner import Plan, PlanLimits, far_fetches, plan_first, plan_next
from cluster.balance.policies.tokenyard import HISTORY
from cluster.balance.shape import ClusterShape
from cluster.balance.trace import LoadTrace
from cluster.cli.generate import AsJson
from experts.errors import UserError
from experts.placement import ABSENT, Placement

Ranks = Annotated[int, typer.Option("--ranks", metavar="R", help="Ranks with experts.")]
Slots = Annotated[int, typer.Option("--slots-per-rank", metavar="S", help="Slots of a rank, per layer.")]
PerNode = Annotated[
    int,
    typer.Option("--ranks-per-node", metavar="N", help="Experts come from the same node first. 0: all on one."),
]
Spread = Annotated[bool, typer.Option("--spread", help="Copies of an expert go to different nodes first.")]
MinCopies = Annotated[
    int, typer.Option("--min-copies", metavar="N", help="Ranks that hold each expert, where slots allow.", min=1)
]
Far = Annotated[
    float, typer.Option("--far", metavar="X", help="A fetch from another node costs X fetches from the same.")
]
StepSeconds = Annotated[
    float, typer.Option("--step-seconds", metavar="S", help="A step's time in experts, all layers.")
]
ExpertBytes = Annotated[float, typer.Option("--expert-bytes", metavar="B", help="One expert of one layer.")]
Bandwidth = Annotated[float, typer.Option("--bandwidth", metavar="B/S", help="Bytes/s free for moves.")]
Horizon = Annotated[float, typer.Option("--horizon", metavar="STEPS", help="Steps that a gain lasts.")]
_INTERVAL = 20  # steps a forecast looks ahead


def plan(
    loads: Annotated[Path, typer.Argument(metavar="LOADS.npz", help="Recorded loads.")],
    ranks: Ranks,
    slots_per_rank: Slots,
    out: Annotated[Path, typer.Option("--out", metavar="PLACEMENT.npz", help="Where the placement goes.")],
    ranks_per_node: PerNode = 0,
    spread: Spread = False,
    min_copies: MinCopies = 1,
    current: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--current", metavar="PLACEMENT.npz", help="Go from this one, by moves that pay."),
    ] = None,
    max_moves: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--max-moves", metavar="M", help="At most so many per layer.", min=0),
    ] = None,
    dead_ranks: Annotated[str, typer.Option("--dead-ranks", metavar="3,7", help="Ranks that hold nothing.")] = "",
    step_seconds: StepSeconds = A100_STEP_SECONDS,
    expert_bytes: ExpertBytes = HUNYUAN_EXPERT_BYTES,
    bandwidth: Bandwidth = NVLINK_FREE,
    horizon: Horizon = HORIZON,
    far: Far = NETWORK_SLOWER,
    as_json: AsJson = False,
) -> None:
    """Plan where experts go."""
    cost = CostModel(step_seconds, expert_bytes, bandwidth, horizon, far)
    cost.check()
    if not out.resolve().parent.is_dir():
        raise UserError(f"no folder {out.resolve().parent}", "a folder that exists", "--out")
    trace = LoadTrace.load(loads)
    layers, experts = trace.loads.shape[1:]
    before = None if current is None else _current(current, ranks, slots_per_rank)
    absent = frozenset() if before is None else frozenset(np.flatnonzero(before.slot_expert[0] == ABSENT).tolist())
    shape = ClusterShape(
        ranks, slots_per_rank, ranks_per_node, _dead(dead_ranks), absent=absent, spread=spread, min_copies=min_copies
    )
    shape.check(layers, experts)
    if not trace.loads.any():
        raise UserError("no tokens in any step", "loads of a running model", f"loads file {loads}")
    if before is not None:
        before.check_fits(layers, experts)
    check_available()  # a planner that is compiled first would count that as its own time
    rows = forecast(trace.loads[-HISTORY:], _INTERVAL)
    limits = PlanLimits(max_moves=max_moves)
    made = plan_first(rows, shape, limits) if before is None else plan_next(rows, shape, before, cost, limits)
    part = out.with_name(out.name + ".part")
    made.placement.save(part)
    os.replace(part, out)
    between = 0 if before is None else int(far_fetches(before, made.placement, shape).sum())
    _tell(made, between, out, as_json)


def _tell(made: Plan, between: int, out: Path, as_json: bool) -> None:
    """between: of the moves, those from one node to another."""
    figures = {
        "placement": str(out),
        "excess_before": round(float(made.before.mean()), 6),
        "excess_after": round(float(made.after.mean()), 6),
        "moves": int(made.moves.sum()),
        "moves_between_nodes": between,
        "planner_seconds": round(made.seconds, 6),
    }
    if as_json:
        print(json.dumps(figures))
        return
    print(
        f"predicted excess {100 * float(made.before.mean()):.2f} % to {100 * float(made.after.mean()):.2f} %, "
        f"{figures['moves']} experts to move ({between} between nodes), planned in {1e3 * made.seconds:.0f} ms; "
        f"placement in {out}"
    )


def _current(path: Path, ranks: int, slots_per_rank: int) -> Placement:
    placement = Placement.load(path, max(ranks, 1))
    if placement.slots_per_rank != slots_per_rank:
        raise UserError(f"{placement.slots_per_rank} slots per rank", f"{slots_per_rank}", f"placement file {path}")
    return placement


def _dead(text: str) -> frozenset[int]:
    try:
        return frozenset(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UserError(repr(text), "rank numbers, as in 3,7", "--dead-ranks") from None
