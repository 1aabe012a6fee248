"""Starts of `serve` and of the demo on 1 + 2 ranks, quiet and beside one busy loop per core: seconds and failures.

    python -m tests.bench.busy_start [--what serve|demo] [--busy] [--count N] [--json]

A start of `serve` is timed to its ready line, and must then answer; the demo is timed to its end. The loops run at the
same priority as what is started.
"""

import argparse
import json
import subprocess
import sys
import time
from contextlib import nullcontext

from router_svc.client import Client
from tests.bench.busy import busy_cores
from tests.serving import serving


def serve_once() -> float:
    """Seconds to the ready line."""
    start = time.monotonic()
    with serving("--dtype", "float32") as (process, target, _):
        seconds = time.monotonic() - start
        with Client(target) as client:
            answer = client.chat([{"role": "user", "content": "/think 12 + 30"}], temperature=0.0, max_tokens=200)
        assert "42" in answer[0].content, answer
        process.terminate()
        assert process.wait(60) == 0
    return seconds


def demo_once() -> float:
    """Seconds of the whole demo, with its answers right."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "cluster.demo"], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, (done.stdout + done.stderr)[-500:]
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="How long starts take, quiet and beside busy loops.")
    parser.add_argument("--what", choices=("serve", "demo"), default="serve")
    parser.add_argument("--busy", action="store_true", help="beside one busy loop per core")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    once = {"serve": serve_once, "demo": demo_once}[options.what]
    with busy_cores() if options.busy else nullcontext():
        for number in range(options.count):
            row: dict[str, object] = {"what": options.what, "busy": options.busy, "start": number + 1}
            try:
                row["seconds"] = round(once(), 1)
            except (AssertionError, subprocess.SubprocessError) as error:
                row["failure"] = " ".join(str(error).split())[-300:]
            print(json.dumps(row) if options.json else "  ".join(f"{k} {v}" for k, v in row.items()), flush=True)


if __name__ == "__main__":
    main()
