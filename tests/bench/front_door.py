"""What the front door adds: streams at a given rate and at full speed, against the engine's own clock.

    python -m tests.bench.front_door [serve's options]

Starts `tokenyard serve` on the small model, asks for 500 tokens/s in all by starting 60-token streams at even
intervals, then for as much as 32 streams give. Prints JSON: tokens/s asked and got, the door's CPU per message, and
the client's time to the first token less the engine's own (median, s).
"""

import json
import subprocess
import sys
import threading
import time
from statistics import median
from typing import Any

import psutil

from router_svc.client import Client
from tests.bench.figures import READY, TOKENYARD, cpu, named

STREAMS, GEN, RATE = 32, 60, 500.0


def one(client: Client, added: list[float], counted: list[int]) -> None:
    """A stream; notes what the front door added to its first token."""
    start, first = time.perf_counter(), 0.0
    for delta in client.generate_stream("Once upon a time", max_tokens=GEN, temperature=0.0, ignore_eos=True):
        first = first or time.perf_counter() - start
        counted[0] += len(delta.token_ids)
        if delta.usage is not None:
            added.append(first - delta.message.timings.first_token)


def run(client: Client, requests: int, interval: float) -> dict[str, Any]:
    """Start `requests` streams, one every `interval` seconds."""
    added: list[float] = []
    counted = [0]
    start = time.perf_counter()
    threads = []
    for i in range(requests):
        time.sleep(max(0.0, start + i * interval - time.perf_counter()))
        threads.append(threading.Thread(target=one, args=(client, added, counted)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    return {
        "tok_s": round(counted[0] / seconds, 1),
        "first_token_added": round(median(added), 4),
        "messages": counted[0],
    }


def main() -> None:
    command = [TOKENYARD, "serve", "--grpc-port", "0", "--http-port", "0", *sys.argv[1:]]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    assert server.stdout is not None
    try:
        match = READY.search(server.stdout.readline())
        assert match, "no ready line"
        with Client(f"127.0.0.1:{match[1]}") as client:
            run(client, 4, 0.1)
            door = named(psutil.Process(server.pid), client).get("door")
            for name, requests, interval in (("paced", 4 * STREAMS, GEN / RATE), ("unpaced", STREAMS, 0.0)):
                before = cpu(door) if door else 0.0
                found = run(client, requests, interval)
                if door:
                    found["door_cpu_ms_per_message"] = round(1000 * (cpu(door) - before) / found["messages"], 4)
                print(json.dumps({"case": name, **({"asked_tok_s": RATE} if name == "paced" else {}), **found}))
    finally:
        server.terminate()
        server.wait(60)


if __name__ == "__main__":
    main()
