"""An expert rank's death under load, measured:
`python -m tests.bench.recovery [R1 R0 ballast busy] [--kills 10] [--streams 32]`.

R1: 1 attention and 3 expert ranks, 64 redundant slots, so that the others have a copy of everything. R0: 1 + 2 as `serve`
starts by default: what was held there alone is read again by a new process. ballast: R1 with 4 GB more in every rank that
holds experts, which Linux takes its time to free. busy: R1 with an endless loop on every core.
Streams of one client, half greedy, half sampled with a seed, are compared with an undisturbed run; a kill's pause is the
longest gap of any stream, less the longest gap of the undisturbed run. Of a stream that came to other tokens the first one
is shown, with the log-probabilities of the likeliest ones at that place: rounding decides between two that are alike.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.config import ServeConfig
from cluster.control.orders import Orders
from cluster.plan import make_plan
from cluster.serve.launch import RayCluster
from cluster.serve.loading import LoadingView
from experts.worker.host import WorkerProcess
from experts.worker.worker import WorkerOrder
from router_svc.client import Client
from router_svc.demo_model.path import checkpoint_path
from tests.bench.busy import busy_cores
from tests.patience import wait_until
from tests.ports import free_port

KINDS: dict[str, dict[str, Any]] = {
    "R1": {"expert_workers": 3, "num_redundant_experts": 64},
    "R0": {"expert_workers": 2},
    "ballast": {"expert_workers": 3, "num_redundant_experts": 64},
    "busy": {"expert_workers": 3, "num_redundant_experts": 64},
}
TOKENS = 300
_BACK = 300.0  # s, for the seat to be there again
_BALLAST = 4 << 30  # bytes


class HeavyProcess(WorkerProcess):
    """A rank with memory that it does not need."""

    def __init__(self, order: WorkerOrder) -> None:
        self._ballast = np.ones(_BALLAST, dtype=np.uint8)
        super().__init__(order)


class HeavyOrders(Orders):
    """Ranks with experts are heavy."""

    def process(self, order: WorkerOrder) -> type[WorkerProcess]:
        return HeavyProcess if order.seat.role == "expert" else super().process(order)


@dataclass
class Round:
    """What a set of streams gave. answers: tokens by stream, or why it failed; gap: the longest between two parts, s."""

    answers: dict[int, tuple[int, ...] | str] = field(default_factory=dict)
    gaps: dict[int, float] = field(default_factory=dict)
    parts: int = 0


def prompt_of(number: int) -> list[int]:
    """Token ids of a stream's prompt."""
    rng = random.Random(number)
    return [rng.randrange(70, 300) for _ in range(4 + number)]


def ask(client: Client, number: int, into: Round) -> None:
    """One stream."""
    prompt = prompt_of(number)
    sampled = {"temperature": 0.8, "seed": number} if number % 2 else {"temperature": 0.0}
    tokens: list[int] = []
    last = longest = 0.0
    try:
        for part in client.generate_stream(prompt, max_tokens=TOKENS, ignore_eos=True, **sampled):
            now = time.monotonic()
            longest = max(longest, now - last) if last else 0.0
            last = now
            tokens += part.token_ids
            into.parts += 1
        into.answers[number] = tuple(tokens)
    except Exception as error:
        into.answers[number] = f"{type(error).__name__}: {error}"
    into.gaps[number] = longest


def streams(client: Client, count: int, kill: int | None = None) -> tuple[Round, float]:
    """All streams at once, and a SIGKILL to process `kill` when a fifth of the tokens are there; when that was."""
    found, killed = Round(), 0.0
    threads = [threading.Thread(target=ask, args=(client, number, found)) for number in range(count)]
    for thread in threads:
        thread.start()
    if kill is not None:
        wait_until(lambda: found.parts > count * TOKENS // 5, "a fifth of the tokens", 300)
        os.kill(kill, signal.SIGKILL)
        killed = time.time()
    for thread in threads:
        thread.join()
    return found, killed


def measure(kind: str, kills: int, count: int) -> dict[str, Any]:
    """A server of a kind, and so many kills."""
    config = ServeConfig(dtype="float32", grpc_port=0, http_port=free_port(), **KINDS[kind])
    plan = make_plan(checkpoint_path(), config, check_ports=False)
    cluster = RayCluster(HeavyOrders(plan) if kind == "ballast" else Orders(plan))
    load: Any = busy_cores() if kind == "busy" else contextlib.nullcontext()
    try:
        with LoadingView(plan.seats) as view:
            cluster.start(view)
        with Client(f"127.0.0.1:{cluster.grpc_port}") as client, load:
            loaded = _start_to_loaded(client)
            quiet, _ = streams(client, count)
            quiet, _ = streams(client, count)  # the first one fills caches
            undisturbed = max(quiet.gaps.values())
            rows = [_kill(client, count, quiet, undisturbed) for _ in range(kills)]
    finally:
        cluster.stop()
    pauses = sorted(row["pause"] for row in rows)
    return {
        "kind": kind, "streams": count, "undisturbed longest gap s": round(undisturbed, 3),
        "pause p50 s": round(statistics.median(pauses), 3), "pause max s": round(pauses[-1], 3),
        "failed": sum(row["failed"] for row in rows), "different": sum(row["different"] for row in rows),
        "start to loaded s": round(loaded, 2),
        "seat back p50 s": round(statistics.median(row["back"] for row in rows), 2),
        "seat back max s": round(max(row["back"] for row in rows), 2), "kills": rows,
    }  # fmt: skip


def _kill(client: Client, count: int, quiet: Round, undisturbed: float) -> dict[str, Any]:
    ready = [worker for worker in client.status()["workers"] if worker["role"] == "expert"]
    victim = random.choice(ready)
    seen = len(_events(client))
    found, killed = streams(client, count, victim["pid"])

    def back() -> bool:
        kinds = [event["kind"] for event in _events(client)[seen:]]
        phases = [event["text"] for event in _events(client)[seen:] if event["kind"] == "recovery"]
        return "recovered" in kinds and ("restored" in kinds or any("phase 3" in text for text in phases))

    wait_until(back, "the seat is back", _BACK)
    ended = max(e["seconds"] for e in _events(client)[seen:] if e["kind"] in ("recovered", "restored"))
    failed = [answer for answer in found.answers.values() if isinstance(answer, str)]
    different = [n for n, answer in found.answers.items() if not isinstance(answer, str) and answer != quiet.answers[n]]
    row = {
        "rank": victim["rank"], "gap": round(max(found.gaps.values()), 3),
        "pause": round(max(found.gaps.values()) - undisturbed, 3), "failed": len(failed), "different": len(different),
        "back": round(ended - killed, 2),
    }  # fmt: skip
    print(json.dumps(row), failed[:1], [_other(client, n, found, quiet) for n in different], flush=True)
    return row


def first_other(number: int, found: Round, quiet: Round) -> tuple[int, str]:
    """(place, in words) where a stream began to differ."""
    pairs = zip(found.answers[number], quiet.answers[number], strict=False)
    at, (got, wanted) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    how = "sampled" if number % 2 else "greedy"
    return at, f"stream {number}, {how}: token {at} is {got}, undisturbed {wanted}"


def _other(client: Client, number: int, found: Round, quiet: Round) -> str:
    """Where a stream began to differ, and how likely the tokens were there."""
    at, words = first_other(number, found, quiet)
    before = [*prompt_of(number), *quiet.answers[number][:at]]
    (answer,) = client.generate(before, max_tokens=1, temperature=0.0, logprobs=5)
    return f"{words}; log-probabilities { {one.token_id: round(one.logprob, 6) for one in answer.message.logprobs[0].top} }"


def _start_to_loaded(client: Client) -> float:
    """Seconds from the start of the ranks' processes until all had their weights."""
    events = _events(client)
    begun = next(event["seconds"] for event in events if event["kind"] == "starting")
    return float(max(event["seconds"] for event in events if event["kind"] == "loaded") - begun)


def _events(client: Client) -> list[dict[str, Any]]:
    return list(client.status(events=True)["events"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=["R1", "R0", "busy"], choices=list(KINDS))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--streams", type=int, default=32)
    options = parser.parse_args(arguments)
    for kind in options.kinds:
        found = measure(kind, options.kills, options.streams)
        del found["kills"]
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
