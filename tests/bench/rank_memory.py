"""Peak memory of each rank while it loads and once it serves: anonymous + shared, not mapped file pages.

    python -m tests.bench.rank_memory MODEL [serve's options]

Prints, per expert rank, the peak in bytes, its slots' weights, and (peak - base) / weights, where base is what the
same process takes before it loads anything.
"""

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil

from cluster.config import ServeConfig
from cluster.plan import make_plan
from router_svc.models.spec import expert_bytes
from tests.bench.figures import READY, TOKENYARD


def own_bytes(pid: int) -> int:
    """RssAnon + RssShmem of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem")))


def main() -> None:
    folder, options = Path(sys.argv[1]), sys.argv[2:]
    plan = make_plan(folder, replace(ServeConfig()), check_ports=False)
    weights = plan.placement.slots_per_rank * plan.spec.experts.moe_layers * expert_bytes(plan.spec, plan.dtype)
    command = [TOKENYARD, "serve", str(folder), "--grpc-port", "0", "--http-port", "0", *options]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    assert server.stdout is not None
    first: dict[int, int] = {}
    peak: dict[int, int] = {}
    ready = threading.Event()
    threading.Thread(target=lambda: (READY.search(server.stdout.readline()), ready.set()), daemon=True).start()  # type: ignore[union-attr]
    try:
        while not ready.is_set():
            for child in psutil.Process(server.pid).children(recursive=True):
                try:
                    if " ".join(child.cmdline()).startswith("ray::ExpertActor"):
                        now = own_bytes(child.pid)
                        first.setdefault(child.pid, now)
                        peak[child.pid] = max(peak.get(child.pid, 0), now)
                except (psutil.NoSuchProcess, FileNotFoundError):
                    continue
            time.sleep(0.02)
        for pid, most in peak.items():
            row = {"pid": pid, "peak": most, "base": first[pid], "slots_weights": weights}
            print(json.dumps(row | {"ratio": round((most - first[pid]) / weights, 3)}))
    finally:
        server.terminate()
        server.wait(60)


if __name__ == "__main__":
    main()
