"""`tokenyard bench`: what measures."""

import importlib
from typing import Annotated, Any

import typer

from cluster.cli.generate import AsJson
from cluster.cli.options import Model, model_folder, serve_flags
from cluster.config import merge

app = typer.Typer(help="Measure.", no_args_is_help=True, rich_markup_mode=None)
_NOT_OF_A_BENCH = (
    "host", "grpc_port", "http_port", "served_model_name", "reasoning_parser", "max_queue_len", "max_num_seqs", "max_model_len",
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
    measured = importlib.import_module("cluster.bench.throughput")
    measured.run(model_folder(model), options, batch, input_len, output_len, reps, as_json)
