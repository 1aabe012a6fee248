"""Starts of a private Ray where people run them: foreign folders, proxies, no home, slow agents, a start that fails."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from socket import create_server

import psutil
import pytest

from tests.ports import free_port
from tests.ray_head import clean_environment
from tests.serving import START_SECONDS, TOKENYARD, end, run, serving

DEAD_PROXY = "http://127.0.0.1:9"
# Python runs this in every process of a start; it slows down those that the raylet waits for.
SLOW_AGENTS = """
import time
if "dashboard/agent.py" in open("/proc/self/cmdline").read().replace("\\0", " "):
    time.sleep(25)
"""

TWO_CLUSTERS = """
from dataclasses import replace
from cluster.config import ServeConfig
from cluster.control.orders import Orders
from cluster.plan import make_plan
from cluster.serve.launch import RayCluster
from cluster.serve.loading import LoadingView
from router_svc.client import Client
from router_svc.demo_model.path import checkpoint_path
for _ in range(2):
    plan = make_plan(checkpoint_path(), ServeConfig(dtype="float32", grpc_port=0, http_port=0))
    with RayCluster(Orders(plan)) as cluster:
        with LoadingView(plan.seats) as view:
            cluster.start(view)
        with Client(f"127.0.0.1:{cluster.grpc_port}") as client:
            print(client.chat("/think 300 + 411", temperature=0.0)[0].content.strip())
"""


@pytest.mark.slow
def test_serves_from_hostile_surroundings_and_leaves_nothing(tmp_path: Path) -> None:
    """Packages of our names in the current folder, a HOME that can't be written, a TMPDIR too long, dead proxies."""
    for name in ("cluster", "experts", "router_svc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not yours')\n")
    (tmp_path / "yaml.py").write_text("raise ImportError('not yours')\n")
    long = tmp_path / ("job" * 12) / ("x" * 60)
    long.mkdir(parents=True)
    surroundings = clean_environment(HOME="/proc/1", TMPDIR=str(long), http_proxy=DEAD_PROXY, https_proxy=DEAD_PROXY)
    before = set(Path("/tmp").glob("ty-*"))
    with serving("--dtype", "float32", cwd=tmp_path, env=surroundings) as (process, target, _):
        done = run("chat", "--target", target, "--json", "--temperature", "0", text="/think 300 + 411\n")
        assert json.loads(done.stdout)["content"].strip() == "711"
        ours = [path for path in set(Path("/tmp").glob("ty-*")) - before if list(path.glob(f"session_*_{process.pid}"))]
        assert len(ours) == 1, "the session lies in a folder of its own"
        end(process, signal.SIGTERM)
    assert not ours[0].exists(), "logs of a clean run go with it"


@pytest.mark.slow
def test_agents_that_are_slow_do_not_end_the_start(tmp_path: Path) -> None:
    """By itself the raylet gives its agents 15 s."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_AGENTS)
    with serving(env=clean_environment(PYTHONPATH=str(tmp_path))) as (process, _, http_port):
        assert http_port
        end(process, signal.SIGTERM)


def ended(environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [*TOKENYARD, "serve", "--grpc-port", "0", "--http-port", str(free_port()), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


@pytest.mark.slow
def test_a_start_that_fails_is_one_line_and_keeps_its_logs() -> None:
    done = ended(clean_environment(RAY_gcs_server_port_wait_time_s="0"))  # Ray's head never comes up in time
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "waited for Ray" in done.stderr
    folder = Path(done.stderr.partition("logs are in ")[2].split()[0])
    assert list(folder.glob("session_*/logs")), "the logs are where the line says"
    left = [p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])]
    assert not left


@pytest.mark.slow
def test_an_address_that_says_nothing_is_given_up() -> None:
    with closing(create_server(("127.0.0.1", 0))) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        done = ended(clean_environment(RAY_ADDRESS=address))
    assert done.returncode == 2
    assert "RAY_ADDRESS: found no Ray at" in done.stderr.splitlines()[-1]
    assert len(done.stderr.splitlines()) == 2, done.stderr


@pytest.mark.parametrize("options", [("--ray-address", "127.0.0.1:1"), ("--ray-address", "ray://127.0.0.1:1")])
def test_an_address_where_no_ray_is_ends_the_start_at_once(options: tuple[str, str]) -> None:
    done = ended(clean_environment(), *options)
    assert done.returncode == 2
    assert "--ray-address: found" in done.stderr.splitlines()[-1]


def test_one_process_never_looks_at_ray_address() -> None:
    done = ended(clean_environment(RAY_ADDRESS="127.0.0.1:1"), "--expert-workers", "0", "--max-model-len", "999999999")
    assert "RAY_ADDRESS" not in done.stderr
    assert "joining" not in done.stderr


@pytest.mark.slow
def test_throughput_needs_neither_door_nor_tokenizer(tmp_path: Path) -> None:
    from router_svc.demo_model.path import checkpoint_path

    for file in checkpoint_path().iterdir():
        if "token" not in file.name:
            (tmp_path / file.name).symlink_to(file)
    arguments = [
        "bench",
        "throughput",
        str(tmp_path),
        "--batch",
        "2",
        "--input-len",
        "8",
        "--output-len",
        "8",
        "--reps",
        "1",
    ]
    seen: set[str] = set()
    for topology in (["--expert-workers", "0"], ["--expert-workers", "2"]):
        command = [*TOKENYARD, *arguments, "--json", *topology]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment()
        )
        watching = threading.Thread(target=note_children, args=(process, seen.update))
        watching.start()
        out, errors = process.communicate(timeout=240)
        watching.join()
        assert process.returncode == 0, errors
        row = json.loads(out)
        assert row["batch"] == 2
        assert row["decode_tok_s"] > 0
    assert any("AttentionActor" in name for name in seen), seen
    assert not [name for name in seen if "Door" in name or "Serve" in name or "Proxy" in name]


def note_children(process: subprocess.Popen[str], note: Callable[[set[str]], object]) -> None:
    """Pass on the names of a process's descendants until it ended."""
    while process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            try:
                note({" ".join(child.cmdline())[:80]})
            except psutil.NoSuchProcess:
                continue
        wait_a_moment()


def wait_a_moment() -> None:
    threading.Event().wait(0.2)


@pytest.mark.slow
def test_a_program_may_start_one_cluster_after_another() -> None:
    """Serve's client of the first one must not be taken for the second one's."""
    done = subprocess.run([sys.executable, "-c", TWO_CLUSTERS], capture_output=True, text=True, timeout=START_SECONDS)
    assert done.stdout.split() == ["711", "711"], done.stderr[-2000:]
