"""Verbs that call a server: wrong targets, proxies in the environment, and `top` in a pipe and in a terminal."""

import asyncio
import os
import pty
import signal
import subprocess
from collections.abc import Iterator

import pytest

from router_svc.client import AsyncClient, Client
from tests.patience import PATIENCE, wait_until
from tests.ports import free_port
from tests.server import RunningServer, one_process
from tests.serving import TOKENYARD, run

DEAD = "http://127.0.0.1:9"  # a proxy where nobody listens


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with one_process() as started:
        yield started


def test_proxies_are_never_asked(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, DEAD)

    async def ask() -> str:
        async with AsyncClient(server.target) as client:
            return str((await client.model_info())["name"])

    with Client(server.target) as client:
        assert client.model_info()["name"] == "demo"
    assert asyncio.run(ask()) == "demo"
    assert run("status", "--target", server.target).returncode == 0


@pytest.mark.parametrize("form", ["{url}", "{url}/v1", "grpc://{target}", "::1:50051", "127.0.0.1", "127.0.0.1:0x1"])
def test_a_target_of_another_form(server: RunningServer, form: str) -> None:
    done = run("status", "--target", form.format(url=server.url, target=server.target))
    assert done.returncode == 2
    assert "expected HOST:PORT" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_port_of_http(server: RunningServer) -> None:
    done = run("status", "--target", server.url.removeprefix("http://"))
    assert done.returncode == 2
    assert "an HTTP port, expected the port of gRPC" in done.stderr
    assert done.stderr.count("\n") == 1


def test_nobody_at_the_target() -> None:
    target = f"127.0.0.1:{free_port()}"
    done = run("status", "--target", target)
    assert done.returncode == 1
    assert done.stderr == f"tokenyard: no tokenyard at {target}; start one with `tokenyard serve`\n"
    done = run("status", "--target", "no-such-host.invalid:50051")
    assert done.returncode == 2
    assert "--target: found host 'no-such-host.invalid'" in done.stderr


def test_top_in_a_pipe_writes_whole_lines(server: RunningServer) -> None:
    done = run(
        "top", "--target", server.target, "--count", "2", "--interval", "0.1", env=os.environ | {"COLUMNS": "20"}
    )
    assert done.returncode == 0
    heads = [line for line in done.stdout.splitlines() if line.startswith("demo ready")]
    assert len(heads) == 2
    assert all("balancedness" in head for head in heads)


def test_top_keeps_its_last_picture_after_ctrl_c(server: RunningServer) -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "200"}
    process = subprocess.Popen(
        [*TOKENYARD, "top", "--target", server.target, "--interval", "0.1"],
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    seen = b""

    def read() -> bool:
        nonlocal seen
        try:
            got = os.read(ours, 65536)
        except OSError:  # the other end is closed
            return False
        seen += got
        return bool(got)

    try:
        wait_until(lambda: read() and b"balancedness" in seen, "a picture")
        process.send_signal(signal.SIGINT)
        wait_until(lambda: not read(), "the end of top")
        assert process.wait(PATIENCE) == 0
        assert b"balancedness" in seen.rpartition(b"\x1b[?1049l")[2], "after the screen of its own"
    finally:
        process.kill()
        process.wait()
        os.close(ours)
