"""`tokenyard bench`: what measures."""

import json
from typing import Annotated, Any

import typer

from cluster.cli.generate import AsJson
from cluster.cli.lazy import load
from cluster.cli.options import Model, model_folder, serve_flags
from cluster.config import merge
from experts.errors import UserError

app = typer.Typer(help="Measure.", no_args_is_help=True, rich_markup_mode=None)
_NOT_OF_A_BENCH = (
    "host", "grpc_port", "http_port", "served_model_name", "grace_period", "reasoning_parser", "max_queue_len",
    "chat_template", "allowed_origins",
    "max_num_seqs", "max_model_len",
)  # fmt: skip


@app.command("throughput", help="Prefill and decode speed of the engine, ids in and ids out.")
@serve_flags(skip=_NOT_OF_A_BENCH)
def throughput(
    *,
    model: Model = None,
    batch: Annotated[list[int], typer.Option("--batch", metavar="B", help="Sequences at once; may be repeated.")] = [1],  # noqa: B006
    input_len: Annotated[int, typer.Option("--input-len", metavar="P", help="Prompt tokens of each.", min=1)] = 128,
    output_len: Annotated[int, typer.Option("--output-len", metavar="G", help="New tokens of each.", min=2)] = 64,
    reps: Annotated[int, typer.Option("--reps", metavar="N", help="Repeats; the best counts.", min=1)] = 2,
    as_json: AsJson = False,
    flags: dict[str, Any],
) -> None:
    """Measure batches of random prompts through the whole engine, without a front door."""
    options = merge(flags, {})
    measured = load("cluster.bench.throughput")
    measured.run(model_folder(model), options, batch, input_len, output_len, reps, as_json)


@app.command("balance", help="Balancing policies on made traffic: excess, moves, planner and split times.")
def balance(
    *,
    config: Annotated[list[str], typer.Option("--config", metavar="NAME", help="Only these cases.")] = [],  # noqa: B006
    regime: Annotated[list[str], typer.Option("--regime", metavar="NAME", help="Only these regimes.")] = [],  # noqa: B006
    policy: Annotated[list[str], typer.Option("--policy", metavar="NAME", help="Only these policies.")] = [],  # noqa: B006
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="Traces per case.", min=1)] = 3,
    first_seed: Annotated[int, typer.Option("--first-seed", metavar="N", help="Number of the first.", min=0)] = 1,
    parts: Annotated[bool, typer.Option("--parts", help="What each part brings, by switching it off.")] = False,
    curve: Annotated[
        bool, typer.Option("--curve", help="Excess against moves: gains taken to last shorter or longer.")
    ] = False,
    batches: Annotated[
        bool, typer.Option("--batches", help="Copies against no copies, at batches of 1 to 65,536.")
    ] = False,
    times: Annotated[bool, typer.Option("--times", help="Planner and split times only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Judge every policy on the cases of docs/balancing.md."""
    if batches:
        _batches(as_json)
        return
    measured = load("cluster.bench.balance")
    regimes = load("cluster.simulate.traffic").REGIMES
    known = [case.name for case in measured.CASES]
    for name in config:
        if name not in known:
            raise UserError(f"case {name!r}", f"one of {', '.join(known)}", "--config")
    for name in regime:
        if name not in regimes:
            raise UserError(f"regime {name!r}", f"one of {', '.join(regimes)}", "--regime")
    if curve:
        measured.show(measured.curves(config or known[1:], regime or ["drift", "burst"], first_seed), as_json)
        return
    contestants = measured.PARTS if parts else measured.policy_contestants(policy)
    if not times:
        measured.show(measured.lines(config, regime, list(range(first_seed, first_seed + seeds)), contestants), as_json)
    if times or not (config or regime or policy or parts):
        measured.show(measured.timings(), as_json)


@app.command("collectives", help="A layer's dispatch and combine without experts' work, in us a layer.")
def collectives(
    *,
    exchange: Annotated[list[str], typer.Option("--exchange", metavar="NAME", help="links, gloo; default both.")] = [],  # noqa: B006
    expert_workers: Annotated[
        int, typer.Option("--expert-workers", metavar="N", help="Ranks with experts.", min=1)
    ] = 2,
    batch: Annotated[list[int], typer.Option("--batch", metavar="B", help="Tokens; may be repeated.", min=1)] = [1],  # noqa: B006
    hidden: Annotated[int, typer.Option("--hidden", metavar="H", help="Width of a row, in bfloat16.", min=1)] = 1024,
    top_k: Annotated[int, typer.Option("--top-k", metavar="K", help="Experts of a token.", min=1, max=64)] = 8,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", help="Turns of each kind.", min=1)] = 5,
    layers: Annotated[int, typer.Option("--layers", metavar="N", help="Of a turn.", min=1)] = 400,
    floor: Annotated[bool, typer.Option("--floor", help="Beside them a bare exchange in C of the same bytes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Kinds of exchange in turn, between the same processes of this machine."""
    measured = load("cluster.bench.collectives")
    known = ("links", "gloo")
    for name in exchange:
        if name not in known:
            raise UserError(repr(name), " or ".join(known), "--exchange")
    kinds = (*(exchange or known), *([measured.FLOOR] if floor else []))
    case = measured.Case(expert_workers, tuple(batch), hidden, top_k, kinds, rounds, layers)
    for row in measured.measure(case):
        print(json.dumps(row) if as_json else "  ".join(f"{k} {v}" for k, v in row.items()), flush=True)


def _batches(as_json: bool) -> None:
    small = load("cluster.bench.small_batches")
    for slots in (9, 10, 12):
        for row in small.ratios(slots):
            print(json.dumps(row) if as_json else "  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
