"""This checkout against another one, as a user of `serve` sees them: start, first token, tokens/s, memory.

    python -m tests.bench.pairs OTHER [--rounds 9] [--streams 1 --streams 32] [-- --expert-workers 0]

OTHER is a folder with another version's source, which runs with this environment's packages. In every round each version starts a
server of the small model, is measured, and stops; who is first alternates. What follows `--` are options of `serve`.
Prints for every figure both medians, and the mean ratio of the pairs, this over the other, with its 90 % interval. A figure
of time or memory is turned round, so that above 1 is better throughout.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median

import psutil

from router_svc.client import Client
from tests.bench.figures import GEN, READY, grpc_stream, load
from tests.bench.threads import interval

_WARM = 20  # tokens
_PATIENCE = 120.0  # s
HERE = Path(__file__).resolve().parents[2]


def measure(source: Path, streams: Sequence[int], options: Sequence[str]) -> dict[str, float]:
    """One server's figures: seconds, tokens/s, MiB (proportional, of all processes together)."""
    command = [sys.executable, "-m", "cluster.cli.main", "serve", "--grpc-port", "0", "--http-port", "0", *options]
    environment = os.environ | {"PYTHONPATH": str(source)}
    began = time.monotonic()
    server = subprocess.Popen(
        command, cwd=source, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert server.stdout is not None
    try:
        match = READY.search(server.stdout.readline())
        assert match, f"no ready line from {source}"
        found = {"start s": time.monotonic() - began}
        with Client(f"127.0.0.1:{match[1]}") as client:
            grpc_stream(client, _WARM)
            for count in streams:
                load(lambda gen: grpc_stream(client, gen), count, _WARM)
                one = load(lambda gen: grpc_stream(client, gen), count, GEN)
                found[f"first token s, {count}"] = one["first_token"]
                found[f"tokens/s, {count}"] = one["tok_s"]
        tree = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        found["MiB"] = sum(process.memory_full_info().pss for process in tree) / 2**20
    finally:
        server.terminate()
        server.wait(_PATIENCE)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--streams", type=int, action="append", default=[])
    words = list(sys.argv[1:] if arguments is None else arguments)
    own = words.index("--") if "--" in words else len(words)
    chosen, options = parser.parse_args(words[:own]), words[own + 1 :]
    streams, other = chosen.streams or [1, 32], chosen.other.resolve()
    pairs: list[tuple[dict[str, float], dict[str, float]]] = []
    for number in range(chosen.rounds):
        order = (HERE, other) if number % 2 else (other, HERE)
        found = {source: measure(source, streams, options) for source in order}
        pairs.append((found[HERE], found[other]))
        print(json.dumps({"round": number, "this": found[HERE], "other": found[other]}), flush=True)
    for name in pairs[0][0]:
        ratios = [
            this[name] / that[name] if name.startswith("tokens/s") else that[name] / this[name] for this, that in pairs
        ]
        low, high = interval(ratios)
        print(
            f"{name}: this {median(this[name] for this, _ in pairs):.4g}, other {median(that[name] for _, that in pairs):.4g}, "
            f"ratio {fmean(ratios):.3f} ({low:.3f} to {high:.3f})"
        )


if __name__ == "__main__":
    main()
