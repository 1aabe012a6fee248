"""`tokenyard status`: the running cluster, as a table in a terminal, plain lines or JSON elsewhere."""

import json
import sys
from datetime import datetime
from typing import Annotated, Any

import typer

from cluster.cli.connect import connect
from cluster.cli.generate import AsJson, Target

Events = Annotated[bool, typer.Option("--events", help="What happened, and why, oldest first.")]


def status(target: Target = "127.0.0.1:50051", events: Events = False, as_json: AsJson = False) -> None:
    """Show ranks, load, balance and requests."""
    with connect(target) as client:
        found = client.status(events)
    if as_json:
        if not found["reason"]:
            del found["reason"]
        print(json.dumps(found))
    elif events:
        for event in found["events"]:
            print(f"{datetime.fromtimestamp(event['seconds']):%Y-%m-%d %H:%M:%S} {event['kind']}: {event['text']}")
    elif sys.stdout.isatty():
        _table(found)
    else:
        print("\n".join(lines(found)))


def lines(found: dict[str, Any]) -> list[str]:
    """The status as plain lines."""
    requests, balance = found["requests"], found["balancedness"]
    head = (
        f"{found['model']}: {found['state']}, epoch {found['epoch']}, placement {found['placement_version']}, "
        f"{requests['running']} running, {requests['waiting']} waiting, balancedness {balance['last']:.3f}"
    )
    serving = (
        f"{found['tokens_per_second']:.1f} tokens/s, first token after {first_token(found)}, "
        f"KV cache {100 * found['kv_cache_usage']:.0f} % in use"
    )
    reason = [f"reason: {found['reason']}"] if found["reason"] else []
    balancer = found["balancer"]
    moving = [f"balancer off: {balancer['reason']}"] if balancer["reason"] else []
    if balancer["state"] != "off":
        moving = [
            f"balancer {balancer['state']} ({balancer['policy']}): {found['rebalances']} rebalances, "
            f"{found['experts_moved']} experts moved in {balancer['seconds']:.1f} s"
            + (f"; {balancer['reason'] or balancer['last']}" if balancer["reason"] or balancer["last"] else "")
        ]
    return [head, serving, *reason, *moving, *_alone(found), *(
        f"rank {w['rank']} {w['role']} {w['state']} pid {w['pid']} on {w['node_ip']}, {memory(w)}, "
        f"{w['slots']} slots, load {w['load']:.3f}"
        for w in found["workers"]
    )]  # fmt: skip


def _alone(found: dict[str, Any]) -> list[str]:
    """A line on the experts whose rank's death streams would wait for; none where there are no copies at all."""
    layers = [f"layer {one['layer']}: {', '.join(map(str, one['experts']))}" for one in found["sole_experts"]]
    return [f"experts on one rank only: {'; '.join(layers)}"] if layers else []


def first_token(found: dict[str, Any]) -> str:
    """The mean time to first token of the last seconds."""
    seconds = found["time_to_first_token"]
    return f"{seconds:.3f} s" if seconds else "- s"


def memory(worker: dict[str, Any]) -> str:
    """A rank's resident memory."""
    return f"{worker['memory_bytes'] / 1e6:,.0f} MB" if worker["memory_bytes"] else "- MB"


def _table(found: dict[str, Any]) -> None:
    from rich.console import Console  # a terminal's dress, not needed elsewhere
    from rich.table import Table

    head, serving, *rest = lines(found)
    table = Table(title=f"{head}\n{serving}", caption="\n".join(rest[: -len(found["workers"])]) or None)
    for name in ("rank", "role", "state", "pid", "node", "memory", "slots", "load"):
        table.add_column(name, justify="left" if name in ("role", "state", "node") else "right")
    for w in found["workers"]:
        row = (w["rank"], w["role"], w["state"], w["pid"], w["node_ip"], memory(w), w["slots"], f"{w['load']:.3f}")
        table.add_row(*map(str, row))
    Console().print(table)
