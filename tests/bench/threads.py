"""Whether threads pay for themselves: tokens/s as shipped beside fixed numbers of threads, on a busy and a quiet machine.

    python -m tests.bench.threads [--topology 1+0 --topology 1+2] [--streams 1 --streams 8] [--load quiet|busy|both]
                                  [--rounds 5] [--seconds 8] [--settings 1,N,shipped,all]

Starts a server of the small model for every setting and measures them in turn, forwards and backwards, in every
round. Settings: a number is OMP_NUM_THREADS; shipped is without it; all gives every part of a step as many threads as
there are cores (TOKENYARD_THREADS), which is what a program does that leaves threads to OpenMP. Busy: one endless loop
runs on each core meanwhile, at the same priority.

Prints a table, then JSON. Busy: median as shipped over the better median of the others, which should be at least 0.8.
Quiet: the 90 % interval of the mean ratio of as shipped and the better other in the same round, which should reach 0.97.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from router_svc.client import CallError, Client
from tests.bench.busy import busy_cores
from tests.bench.figures import READY, TOKENYARD

WARM = 1.0  # s before counting begins
GEN = 256  # tokens of a stream; the next one follows at once
SHIPPED = "shipped"


@dataclass(frozen=True, slots=True)
class Figure:
    """One topology, number of streams and load. rates: tokens/s of each round by setting."""

    topology: str
    streams: int
    busy: bool
    rates: dict[str, list[float]]

    def verdict(self) -> dict[str, Any]:
        """Medians, and as shipped against the better of the others."""
        medians = {setting: median(rates) for setting, rates in self.rates.items()}
        others = {setting: rate for setting, rate in medians.items() if setting != SHIPPED}
        better = max(others, key=lambda setting: others[setting])
        ratios = [s / b for s, b in zip(self.rates[SHIPPED], self.rates[better], strict=True)]
        low, high = interval(ratios)
        return {
            "medians": {setting: round(rate, 1) for setting, rate in medians.items()},
            "better": better,
            "of_medians": round(medians[SHIPPED] / medians[better], 3),
            "interval": [round(low, 3), round(high, 3)],
            "holds": medians[SHIPPED] >= 0.8 * medians[better] if self.busy else high >= 0.97,
        }


def interval(ratios: list[float]) -> tuple[float, float]:
    """90 % interval of the mean, by drawing rounds again and again."""
    draw = random.Random(0)
    means = sorted(fmean(draw.choices(ratios, k=len(ratios))) for _ in range(4000))
    return means[200], means[3799]


def environment(setting: str) -> dict[str, str]:
    """Of a server with this setting."""
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "TOKENYARD_THREADS")}
    if setting == SHIPPED:
        return clean
    if setting == "all":
        return clean | {"TOKENYARD_THREADS": "all"}
    return clean | {"OMP_NUM_THREADS": setting}


@contextlib.contextmanager
def served(topology: str, setting: str) -> Iterator[Client]:
    """A client of a fresh server."""
    attention, experts = topology.split("+")
    command = [TOKENYARD, "serve", "--grpc-port", "0", "--http-port", "0"]
    command += ["--attention-workers", attention, "--expert-workers", experts]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment(setting)
    )
    assert server.stdout is not None
    try:
        match = READY.search(server.stdout.readline())
        assert match, f"{topology} with {setting}: no ready line"
        with Client(f"127.0.0.1:{match[1]}") as client:
            yield client
    finally:
        server.terminate()
        server.wait(60)


def rate(client: Client, streams: int, seconds: float) -> float:
    """Tokens/s of `streams` that follow each other without a pause, after they have run for WARM seconds."""
    counts, ended = [0] * streams, threading.Event()

    def stream(index: int) -> None:
        while not ended.is_set():
            with contextlib.suppress(CallError):
                for delta in client.generate_stream(
                    f"Count {index}:", max_tokens=GEN, temperature=0.0, ignore_eos=True
                ):
                    counts[index] += len(delta.token_ids)
                    if ended.is_set():
                        break

    running = [threading.Thread(target=stream, args=(index,)) for index in range(streams)]
    for thread in running:
        thread.start()
    time.sleep(WARM)
    before, start = sum(counts), time.perf_counter()
    time.sleep(seconds)
    tokens, seconds = sum(counts) - before, time.perf_counter() - start
    ended.set()
    for thread in running:
        thread.join()
    return tokens / seconds


def measure(topology: str, streams: list[int], loads: list[bool], options: argparse.Namespace) -> Iterator[Figure]:
    """All figures of one topology, with the servers of all settings up."""
    with contextlib.ExitStack() as stack:
        clients = {setting: stack.enter_context(served(topology, setting)) for setting in options.settings}
        for busy in loads:
            with busy_cores() if busy else contextlib.nullcontext():
                for count in streams:
                    rates: dict[str, list[float]] = {setting: [] for setting in clients}
                    for round_ in range(options.rounds):
                        for setting in list(clients)[:: 1 if round_ % 2 == 0 else -1]:
                            rates[setting].append(rate(clients[setting], count, options.seconds))
                    yield Figure(topology, count, busy, rates)


def show(figure: Figure) -> dict[str, Any]:
    """Print a line; what goes into the JSON."""
    verdict = figure.verdict()
    told = "  ".join(f"{setting} {rate:8.1f}" for setting, rate in verdict["medians"].items())
    low, high = verdict["interval"]
    print(
        f"{figure.topology}  {figure.streams} streams  {'busy ' if figure.busy else 'quiet'}  {told}  "
        f"of {verdict['better']}: {verdict['of_medians']:.2f}, paired {low:.2f} to {high:.2f}  "
        f"{'holds' if verdict['holds'] else 'FAILS'}",
        flush=True,
    )
    rounds = {setting: [round(r, 1) for r in rates] for setting, rates in figure.rates.items()}
    return asdict(figure) | {"rates": rounds} | verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--topology", action="append", choices=("1+0", "1+2"))
    parser.add_argument("--streams", action="append", type=int)
    parser.add_argument("--load", choices=("quiet", "busy", "both"), default="both")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--settings", type=lambda text: text.split(","), default=["1", str(cores), SHIPPED, "all"])
    options = parser.parse_args()
    loads = {"quiet": [False], "busy": [True], "both": [False, True]}[options.load]
    figures = [
        show(figure)
        for topology in options.topology or ["1+0", "1+2"]
        for figure in measure(topology, options.streams or [1, 8], loads, options)
    ]
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
