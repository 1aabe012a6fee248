"""`tokenyard simulate --hardware`: a table of predictions, as rows, lines or JSON."""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.simulate.capacity import Load, Prediction, floor_tokens, predict
from cluster.simulate.hardware import hardware
from cluster.simulate.model_sizes import load_sizes


def run(name: str, model: Path, ranks: list[int], load: Load, as_json: bool) -> None:
    """Predict a model's step on each number of ranks."""
    machine, sizes = hardware(name), load_sizes(model)
    rows = [predict(sizes, machine, count, load) for count in ranks]
    if as_json:
        for row in rows:
            print(json.dumps({"hardware": name, "model": str(model), "tokens": load.tokens, **row.figures()}))
        return
    head = (
        f"{model} on {name} ({machine.source}); {load.tokens} tokens a step, context {load.context}, {load.weights}, excess "
        f"{100 * load.excess:g} %; below {floor_tokens(machine, load.weights):.0f} tokens an expert, reading weights is the cost"
    )
    if sys.stdout.isatty():
        _table(head, rows)
    else:
        print(head)
        for row in rows:
            print(
                f"{row.ranks} ranks: step {1e3 * row.step:.2f} ms, {row.tokens_per_second:,.0f} tokens/s, "
                f"{row.memory / 1e9:.1f} GB a rank{'' if row.fits else ' (too much)'}; limit: {row.limit}"
            )


def _table(head: str, rows: list[Prediction]) -> None:
    table = Table(title=head)
    for column in (
        "ranks",
        "step ms",
        "tokens/s",
        "per rank",
        "experts",
        "attention",
        "network",
        "latency",
        "GB",
        "limit",
    ):
        table.add_column(column, justify="left" if column == "limit" else "right")
    for row in rows:
        parts = (max(row.experts_read, row.experts_compute), row.attention, row.network, row.latency)
        table.add_row(
            str(row.ranks), f"{1e3 * row.step:.2f}", f"{row.tokens_per_second:,.0f}", f"{row.tokens_per_second / row.ranks:,.0f}",
            *(f"{1e3 * part:.2f}" for part in parts), f"{row.memory / 1e9:.1f}", row.limit,
        )  # fmt: skip
    Console().print(table)
