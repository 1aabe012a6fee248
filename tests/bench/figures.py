"""Figures of a running server, as its user sees it: start, idle, memory, first token, tokens/s, front door's cost.

    python -m tests.bench.figures [--expert-workers N] [--attention-workers N]

Starts `tokenyard serve` on the small model (other options are passed on) and prints one JSON object. Times in
seconds, memory in MiB, CPU as a share of one core.
"""

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from router_svc.client import Client

READY = re.compile(r"grpc 127\.0\.0\.1:(\d+), http http://127\.0\.0\.1:(\d+)")
TOKENYARD = str(Path(sys.executable).parent / "tokenyard")
GEN = 200


def cpu(process: psutil.Process) -> float:
    """Seconds of CPU that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def grpc_stream(client: Client, gen: int) -> tuple[float, float]:
    """(seconds to the first token, in all) of one stream."""
    start, first = time.perf_counter(), 0.0
    for _ in client.generate_stream("Once upon a time", max_tokens=gen, temperature=0.0, ignore_eos=True):
        first = first or time.perf_counter() - start
    return first, time.perf_counter() - start


def http_stream(port: str, gen: int) -> tuple[float, float]:
    """The same over server-sent events."""
    body = {"prompt": "Once upon a time", "max_tokens": gen, "temperature": 0, "ignore_eos": True, "stream": True}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode())
    start, first = time.perf_counter(), 0.0
    with urllib.request.urlopen(request, timeout=120) as answer:
        for line in answer:
            if line.startswith(b"data"):
                first = first or time.perf_counter() - start
    return first, time.perf_counter() - start


def load(run: Any, streams: int, gen: int) -> dict[str, float]:
    """First token (median) and tokens/s of `streams` at once."""
    start = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        found = list(pool.map(lambda _: run(gen), range(streams)))
    total = time.perf_counter() - start
    return {"first_token": round(median(f for f, _ in found), 4), "tok_s": round(streams * gen / total, 1)}


def memory(processes: dict[str, psutil.Process]) -> dict[str, dict[str, float]]:
    """Resident and proportional MiB per process."""
    found = {}
    for name, process in processes.items():
        full = process.memory_full_info()
        found[name] = {"rss": round(full.rss / 2**20, 1), "pss": round(full.pss / 2**20, 1)}
    return found


def named(server: psutil.Process, client: Client) -> dict[str, psutil.Process]:
    """Ranks and ingresses by name."""
    ranks = {f"rank {w['rank']} ({w['role']})": psutil.Process(int(w["pid"])) for w in client.status()["workers"]}
    for child in server.children(recursive=True):
        title = " ".join(child.cmdline())
        for word, name in (
            ("ray::Door", "door"),
            ("ray::ServeReplica", "serve replica"),
            ("ray::Supervisor", "supervisor"),
        ):
            if title.startswith(word):
                ranks[name] = child
    return ranks


def measure(target: str, http_port: str, server: psutil.Process) -> dict[str, Any]:
    """All figures of a server that is ready."""
    found: dict[str, Any] = {}
    with Client(target) as client:
        for _ in range(2):
            grpc_stream(client, 20)
        processes = named(server, client)
        ranks = [p for name, p in processes.items() if name.startswith("rank")]
        time.sleep(2)
        before, start = sum(map(cpu, ranks)), time.monotonic()
        time.sleep(15)
        found["idle_cpu_of_all_ranks"] = round((sum(map(cpu, ranks)) - before) / (time.monotonic() - start), 4)
        after_idle = []
        for _ in range(5):
            time.sleep(1.5)
            after_idle.append(grpc_stream(client, 2)[0])
        background = threading.Thread(target=grpc_stream, args=(client, 1000))
        background.start()
        time.sleep(0.5)
        busy = median(grpc_stream(client, 2)[0] for _ in range(5))
        background.join()
        found["first_token_after_idle"] = round(median(after_idle), 4)
        found["first_token_beside_another_stream"] = round(busy, 4)
        found["memory"] = memory(processes)
        for streams in (1, 32):
            found[f"grpc_{streams}"] = load(lambda gen: grpc_stream(client, gen), streams, GEN)
            found[f"http_{streams}"] = load(lambda gen: http_stream(http_port, gen), streams, GEN)
        for name, run in (
            ("door", lambda gen: grpc_stream(client, gen)),
            ("serve replica", lambda gen: http_stream(http_port, gen)),
        ):
            if name in processes:
                before = cpu(processes[name])
                load(run, 32, GEN)
                found[f"{name} cpu_ms_per_message"] = round(1000 * (cpu(processes[name]) - before) / (32 * GEN), 4)
    return found


def main() -> None:
    command = [TOKENYARD, "serve", "--grpc-port", "0", "--http-port", "0", *sys.argv[1:]]
    started = time.monotonic()
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    assert server.stdout is not None
    try:
        match = READY.search(server.stdout.readline())
        assert match, "no ready line"
        ready = time.monotonic() - started
        found = {"command": " ".join(command[1:]), "start_to_ready": round(ready, 2)}
        print(json.dumps(found | measure(f"127.0.0.1:{match[1]}", match[2], psutil.Process(server.pid)), indent=1))
    finally:
        server.terminate()
        server.wait(60)


if __name__ == "__main__":
    main()
