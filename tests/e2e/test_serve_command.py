"""`tokenyard serve` as its user runs it: ready line, answers, signals, exit codes, and nothing left behind."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

TOKENYARD = [str(Path(sys.executable).parent / "tokenyard")]
READY = re.compile(r"grpc 127\.0\.0\.1:(\d+), http http://127\.0\.0\.1:(\d+)")


@contextmanager
def serving(*options: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """(process, gRPC target, HTTP port) of a `serve` that is ready."""
    command = [*TOKENYARD, "serve", "--grpc-port", "0", "--http-port", "0", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    errors: list[str] = []
    assert process.stderr is not None
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or []), daemon=True)
    reader.start()
    try:
        line = process.stdout.readline()
        found = READY.search(line)
        assert found, f"no ready line: {line!r} {errors}"
        yield process, f"127.0.0.1:{found[1]}", found[2]
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)


def end(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal; exit code 0, and no process of its tree is left."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    assert process.wait(40) == 0
    until = time.monotonic() + 10
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family):
        left = [p.name() for p in family if p.is_running()]
        assert time.monotonic() < until, f"left behind: {left}"
        time.sleep(0.1)


def run(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TOKENYARD, *arguments], capture_output=True, text=True, timeout=90, input=text)


def test_one_process_answers_and_ends_on_sigterm() -> None:
    with serving("--expert-workers", "0") as (process, target, _):
        done = run("chat", "--target", target, "--json", "--temperature", "0", text="/think What is 123 + 456?\n")
        assert json.loads(done.stdout)["content"].strip() == "579"
        done = run("generate", "-", "--target", target, "--json", "--max-tokens", "5", text="Once upon")
        assert json.loads(done.stdout)["usage"]["completion_tokens"] <= 5
        status = json.loads(run("status", "--json", "--target", target).stdout)
        assert status["state"] == "ready"
        assert [w["role"] for w in status["workers"]] == ["both"]
        assert run("generate", "x", "--target", target, "--temperature", "-1").returncode == 2
        end(process, signal.SIGTERM)


def test_ray_cluster_ends_on_sigint() -> None:
    with serving("--dtype", "float32") as (process, target, _):
        done = run("chat", "--target", target, "--json", "--temperature", "0", text="/think 300 + 411\n")
        assert json.loads(done.stdout)["content"].strip() == "711"
        end(process, signal.SIGINT)


def test_signal_while_starting_leaves_nothing() -> None:
    command = [*TOKENYARD, "serve", "--grpc-port", "0", "--http-port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        until = time.monotonic() + 30
        while len(psutil.Process(process.pid).children(recursive=True)) < 3:
            assert time.monotonic() < until
            time.sleep(0.1)
        end(process, signal.SIGTERM)  # type: ignore[arg-type]
    finally:
        if process.poll() is None:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["serve", "nowhere"], "nowhere: found no such folder"),
        (["serve", "org/name"], "hub id"),
        (["serve", "--attention-workers", "2", "--expert-workers", "0"], "--expert-workers"),
        (["serve", "--enable-eplb", "--expert-workers", "1"], "--enable-eplb"),
        (["serve", "--tls-cert", "x"], "--tls-cert"),
        (["serve", "--dtype", "bf16"], "did you mean bfloat16"),
        (["serve", "--expert-workers", "0", "--kv-cache-memory-bytes", "5000"], "--kv-cache-memory-bytes"),
        (["serve", "--expert-workers", "0", "--max-model-len", "999999999"], "--max-model-len"),
        (["generate", "x", "--target", "nonsense"], "HOST:PORT"),
        (["generate", "x", "--max-tokens", "99999999999"], "--max-tokens"),
        (["generate", "x", "--seed", "99999999999999999999"], "--seed"),
        (["generate", "\udcff", "--target", "127.0.0.1:1"], "PROMPT: found invalid UTF-8"),
        (["chat", "--target", "\udcff:1"], "--target"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(arguments: list[str], expected: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_unreachable_server_is_exit_1() -> None:
    done = run("status", "--target", "127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
