"""Live balancing on the small model, measured: `python -m tests.bench.balancing`. Prints one JSON object.

1 attention and 4 expert ranks, a quarter spare slots, float32, traffic of one kind, then of another. Ranks share this
machine's cores, so balance can't shorten a step here; what is told is tokens changed, excess, moves, bytes, step times.
"""

import json
import random
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.balance.cost import FLOOR_TOKENS
from cluster.balance.policies.registry import load_policy
from cluster.balance.shape import ClusterShape
from cluster.balance.trace import LoadTrace
from cluster.config import ServeConfig
from cluster.control.orders import Orders
from cluster.plan import make_plan
from cluster.serve.launch import RayCluster
from cluster.serve.loading import LoadingView
from cluster.simulate.replay import ReplaySettings, replay
from experts.placement import Placement
from experts.worker.remote import wait
from router_svc.client import Client
from router_svc.demo_model.path import checkpoint_path
from tests.ports import free_port
from tests.tasks import TASKS

SECONDS = 30.0
STREAMS = 16


def ask(client: Client, task: str, question: str) -> tuple[int, ...]:
    """Greedy tokens of an answer."""
    answer = client.chat([{"role": "user", "content": question}], temperature=0.0, max_tokens=64)[0]
    return tuple(answer.token_ids)


def phase(client: Client, task: str, seconds: float) -> tuple[dict[str, tuple[int, ...]], list[float]]:
    """Traffic of one kind: answers by question, and the seconds between streamed deltas."""
    end = time.monotonic() + seconds
    answers: dict[str, tuple[int, ...]] = {}
    gaps: list[float] = []

    def one(seed: int) -> None:
        rng = random.Random(f"{task}/{seed}")
        while time.monotonic() < end:
            question, last = TASKS[task](rng), None
            tokens: list[int] = []
            messages = [{"role": "user", "content": question}]
            for delta in client.chat_stream(messages, temperature=0.0, max_tokens=64):
                now = time.monotonic()
                if last is not None:
                    gaps.append(now - last)
                last = now
                tokens.extend(delta.token_ids)
            answers[question] = tuple(tokens)

    with ThreadPoolExecutor(STREAMS) as pool:
        list(pool.map(one, range(STREAMS)))
    return answers, sorted(gaps)


def predicted(path: Path, eplb: bool) -> float:
    """Excess of the recorded steps in the simulator, with the ranks' own split, from the same first placement."""
    trace = LoadTrace.load(path)
    start = Placement.first(4, 64, 4, 20)
    known = ReplaySettings(interval=80, floor=FLOOR_TOKENS["cpu"], start=start, window=400)
    return replay(trace.loads, ClusterShape(4, 20), load_policy("tokenyard" if eplb else "none"), known).excess


def serve(eplb: bool) -> dict[str, object]:
    """One server, two kinds of traffic."""
    trace = Path(tempfile.mkdtemp()) / "loads.npz"
    config = ServeConfig(
        expert_workers=4, num_redundant_experts=16, dtype="float32", grpc_port=0, http_port=free_port(), enable_eplb=eplb,
        eplb_interval=10, record_loads=trace,
    )  # fmt: skip
    plan = make_plan(checkpoint_path(), config, check_ports=False)
    cluster = RayCluster(Orders(plan))
    try:
        with LoadingView(plan.seats) as view:
            cluster.start(view)
        out: dict[str, object] = {"enable_eplb": eplb}
        with Client(f"127.0.0.1:{cluster.grpc_port}") as client:
            kept: dict[str, tuple[int, ...]] = {}
            for task in ("add", "reverse"):
                counted = len(wait(cluster.supervisor.counted()))
                answers, gaps = phase(client, task, SECONDS)
                kept |= answers
                rows = wait(cluster.supervisor.counted())[counted:]
                third = len(rows) // 3
                parts = {"first third": rows[:third], "last third": rows[-third:]}
                out[task] = {
                    "answers": len(answers),
                    "steps": len(rows),
                    "excess": {
                        k: round(sum(r.busiest for r in v) / sum(r.mean for r in v) - 1, 4) for k, v in parts.items()
                    },
                    "gap p50 ms": round(1e3 * gaps[len(gaps) // 2], 1),
                    "gap p99 ms": round(1e3 * gaps[int(len(gaps) * 0.99)], 1),
                    "longest gap ms": round(1e3 * gaps[-1], 1),
                }
            status = client.status(events=True)
            out["speeds"] = [event["text"] for event in status["events"] if event["kind"] == "speeds"]
            out["experts moved"], out["rebalances"] = status["experts_moved"], status["rebalances"]
            moved = [
                re.search(r"([\d.]+) MB, in ([\d.]+) s", e["text"]) for e in status["events"] if e["kind"] == "moved"
            ]
            out["MB moved"] = round(sum(float(m[1]) for m in moved if m), 2)
            out["longest rebalance s"] = max((float(m[2]) for m in moved if m), default=0.0)
            again = {q: ask(client, "", q) for q in random.Random(1).sample(sorted(kept), min(60, len(kept)))}
            out["answers compared"] = len(again)
            out["changed tokens"] = sum(a != b for q in again for a, b in zip(again[q], kept[q], strict=True))
            rows = wait(cluster.supervisor.counted())
            out["excess of all steps"] = round(sum(r.busiest for r in rows) / sum(r.mean for r in rows) - 1, 4)
    finally:
        cluster.stop()
    out["the same, by simulating the recorded trace"] = round(predicted(trace, eplb), 4)
    return out


if __name__ == "__main__":
    print(json.dumps([serve(eplb) for eplb in (False, True)], indent=1))
