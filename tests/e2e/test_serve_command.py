"""`tokenyard serve` as its user runs it: ready line, answers, signals, exit codes, and nothing left behind."""

import json
import signal
import subprocess

import psutil
import pytest

from tests.patience import wait_until
from tests.serving import TOKENYARD, end, kill_tree, run, serving


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
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        wait_until(lambda: len(psutil.Process(process.pid).children(recursive=True)) >= 3, "Ray's processes")
        end(process, signal.SIGTERM)
    finally:
        kill_tree(process)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["serve", "nowhere"], "nowhere: found no such folder"),
        (["serve", "org/name"], "hub id"),
        (["serve", ""], "MODEL: found ''"),
        (["serve", "--attention-workers", "2", "--expert-workers", "0"], "--expert-workers"),
        (["serve", "--enable-eplb", "--expert-workers", "1"], "--enable-eplb"),
        (["serve", "--tls-cert", "x"], "--tls-cert"),
        (["serve", "--record-loads", "/proc/x.npz"], "--record-loads: found /proc/x.npz, which can't be written"),
        (["serve", "--eplb-policy", "oracle"], "--eplb-policy: found policy 'oracle', which looks into the future"),
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
