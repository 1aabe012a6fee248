"""`tokenyard top`: the running cluster as a view that redraws: load and replicas per rank, moves, balance, events."""

import itertools
import time
from collections.abc import Generator
from contextlib import closing, nullcontext, suppress
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cluster.cli.connect import connect
from cluster.cli.generate import Target
from cluster.cli.status import first_token, memory

_BAR = 30  # characters of a load of 2
_WIDE = 10_000  # characters: lines of a file or a pipe are not broken
Every = Annotated[float, typer.Option("--interval", metavar="S", help="Seconds between looks.", min=0.1)]
Count = Annotated[int, typer.Option("--count", metavar="N", help="Looks, 0 = until Ctrl-C.", min=0)]


def top(target: Target = "127.0.0.1:50051", interval: Every = 1.0, count: Count = 0) -> None:
    """Watch ranks, loads, replicas and moves."""
    console = Console()
    newest: list[Group] = []
    with (
        connect(target) as client,
        suppress(KeyboardInterrupt),
        closing(_looks(client, interval, count, console, newest)) as looks,
    ):
        for picture in looks:
            if not console.is_terminal:
                Console(width=_WIDE).print(picture)
    if console.is_terminal and newest:
        console.print(newest[0])  # the view's own screen, closed by now, took it along


def _looks(client: Any, interval: float, count: int, console: Console, newest: list[Group]) -> Generator[Group]:
    """A picture every `interval` seconds; in a terminal it is shown on a screen of its own.

    newest: holds it from before it is shown, so that Ctrl-C finds what people have seen
    """
    terminal = console.is_terminal
    with Live(console=console, auto_refresh=False, screen=terminal) if terminal else nullcontext() as live:
        for look in itertools.count(1):
            picture = view(client.status(events=True), copies_per_rank(client.placement()))
            newest[:] = [picture]
            if live is not None:
                live.update(picture, refresh=True)
            yield picture
            if look == count:
                return
            time.sleep(interval)


def copies_per_rank(placement: Any) -> dict[int, tuple[int, int]]:
    """Per expert rank, (slots in use, of them copies of experts that have several), over all layers."""
    table = np.array(placement.slot_expert, dtype=np.int64).reshape(placement.layers, -1)
    width = placement.slots_per_rank
    several = np.zeros_like(table, dtype=bool)
    for layer, row in enumerate(table):
        copies = np.bincount(row[row >= 0])
        several[layer] = (row >= 0) & (copies[np.maximum(row, 0)] > 1)
    return {
        rank: (
            int((table[:, rank * width : (rank + 1) * width] >= 0).sum()),
            int(several[:, rank * width : (rank + 1) * width].sum()),
        )
        for rank in range(placement.ranks)
    }


def view(found: dict[str, Any], copies: dict[int, tuple[int, int]]) -> Group:
    """One picture. copies: of copies_per_rank."""
    requests, balance, balancer = found["requests"], found["balancedness"], found["balancer"]
    head = Text.assemble(
        (f"{found['model']} ", "bold"),
        (found["state"], "green" if found["state"] == "ready" else "red"),
        f"  epoch {found['epoch']}  placement {found['placement_version']}  {requests['running']} running, "
        f"{requests['waiting']} waiting  balancedness {balance['last']:.3f} (mean {balance['mean']:.3f})",
    )
    serving = Text(
        f"{found['tokens_per_second']:.1f} tokens/s  first token after {first_token(found)}  "
        f"KV cache {100 * found['kv_cache_usage']:.0f} % in use"
    )
    moving = Text(
        f"balancer {balancer['state']}  {balancer['plans']} plans, {found['rebalances']} rebalances, "
        f"{found['experts_moved']} experts moved in {balancer['seconds']:.1f} s  {balancer['last']}"
    )
    table = Table(box=None, pad_edge=False)
    for name, side in (("rank", "right"), ("role", "left"), ("state", "left"), ("memory", "right"), ("slots", "right"),
                       ("replicas", "right"),                        ("load", "right"), ("", "left")):  # fmt: skip
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for worker in found["workers"]:
        used, several = copies.get(worker["rank"], (0, 0)) if worker["slots"] else (0, 0)
        load = worker["load"]
        bar = Text("█" * min(round(load * _BAR / 2), _BAR), "red" if load > 1.2 else "green")
        table.add_row(
            str(worker["rank"]), worker["role"], worker["state"], memory(worker), str(used or ""), str(several or ""),
            f"{load:.2f}" if worker["slots"] else "", bar,
        )  # fmt: skip
    events = [
        Text(f"{time.strftime('%H:%M:%S', time.localtime(e['seconds']))} {e['kind']}: {e['text']}", "dim")
        for e in found["events"][-6:]
    ]
    return Group(head, serving, *([Text(found["reason"], "red")] if found["reason"] else []), moving, table, *events)
