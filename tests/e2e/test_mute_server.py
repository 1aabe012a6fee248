"""A server whose notes nobody can read serves, and a hangup ends it as SIGTERM does: running requests get the grace period."""

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from experts.address import Listen, check_port, joined
from experts.errors import UserError
from router_svc.client import CallError, Client
from tests.patience import PATIENCE, wait_until
from tests.ports import free_port
from tests.serving import START_SECONDS, TOKENYARD, end, kill_tree

LONG = {"max_tokens": 2000, "temperature": 0.0, "ignore_eos": True}


@contextmanager
def mute_server(host: str, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], str, str]]:
    """(process, gRPC target, URL) of a server that is ready; its standard output is broken and its standard error full."""
    grpc, http = free_port(host), free_port(host)
    command = [
        *TOKENYARD, "serve", "--host", host, "--grpc-port", str(grpc), "--http-port", str(http), *options
    ]  # fmt: skip
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(command, stdout=writer, stderr=full, start_new_session=True)
    os.close(writer)
    url = f"http://{joined(host, http)}"

    def healthy() -> bool:
        assert process.poll() is None, f"ended with {process.poll()}"
        try:
            return bool(urllib.request.urlopen(f"{url}/health", timeout=PATIENCE).status == 200)
        except OSError:
            return False

    try:
        wait_until(healthy, "the server", START_SECONDS)
        yield process, joined(host, grpc), url
    finally:
        kill_tree(process)


@pytest.mark.parametrize(("experts", "host"), [(0, "127.0.0.1"), pytest.param(2, "::1", marks=pytest.mark.slow)])
def test_a_mute_server_serves_and_ends_on_a_hangup(experts: int, host: str, tmp_path: Path) -> None:
    try:
        check_port(Listen(host, 0), "--http-port")
    except UserError as error:  # a container without IPv6
        pytest.skip(str(error))
    loads = tmp_path / "loads.npz"
    options = ("--expert-workers", str(experts), "--grace-period", "0.2", "--record-loads", str(loads))
    body = json.dumps({"prompt": [5, 6, 7], "stream": True, **LONG}).encode()
    with mute_server(host, *options) as (process, target, url), Client(target) as client:
        stream = client.generate_stream([5, 6, 7], **LONG)
        next(stream)
        request = urllib.request.Request(f"{url}/v1/completions", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            answer.readline()
            end(process, signal.SIGHUP)
            last = [line for line in answer.read().decode().splitlines() if line][-1]
        assert "--grace-period" in json.loads(last.removeprefix("data: "))["error"]["message"]
        with pytest.raises(CallError, match="shutting down") as caught:
            list(stream)
        assert caught.value.code == "UNAVAILABLE"
    assert loads.exists()
