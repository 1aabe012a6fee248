"""Guards of `experts.ray_private`: what it reaches into is there, and does what it is used for. No Ray is started."""

import inspect
import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import ray
from ray._private import parameter, ray_constants, services, worker
from ray.serve import context
from ray.serve._private import api as serve_api
from ray.serve._private import client as serve_client
from ray.serve._private import replica as serve_replica

from experts import env, ray_private


def test_the_version_that_the_private_parts_were_read_in() -> None:
    assert ray.__version__.startswith("2.60."), "read experts/ray_private.py beside the new version, then change this"


def test_workers_path_is_this_process_s_and_takes_no_current_folder() -> None:
    job = ray_private.our_path()
    job._py_driver_sys_path.extend([os.getcwd()])  # as ray.init does
    assert list(job._get_proto_job_config().py_driver_sys_path) == sys.path[::-1]


def test_what_ray_prints_of_dead_workers_goes_to_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    before = worker.print_to_stdstream
    assert "print_to_stdstream(" in inspect.getsource(worker.listen_error_messages)
    try:
        ray_private.log_what_it_prints()
        worker.print_to_stdstream({"lines": ["A worker died"], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    finally:
        worker.print_to_stdstream = before
    assert not capsys.readouterr().out


def test_agents_get_ports_while_ray_starts() -> None:
    before = parameter.RayParams, services.start_ray_process
    ran: list[list[str]] = []
    services.start_ray_process = lambda command, *_, **__: ran.append(command)
    try:
        with ray_private.agent_ports():
            params = parameter.RayParams(metrics_export_port=None, num_cpus=2)
            services.start_ray_process(["raylet"], ray_constants.PROCESS_TYPE_RAYLET)
            services.start_ray_process(["gcs"], ray_constants.PROCESS_TYPE_GCS_SERVER)
    finally:
        services.start_ray_process = before[1]
    assert parameter.RayParams is before[0]
    ports = {params.metrics_agent_port, params.metrics_export_port, params.runtime_env_agent_port}
    assert len(ports) == 3
    assert ran == [["raylet", f"--dashboard_agent_listen_port={params.dashboard_agent_listen_port}"], ["gcs"]]
    assert params.num_cpus == 2


_UNDER_UV = """
from ray._private.worker import _maybe_modify_runtime_env
from experts.ray_private import without_uv
with without_uv():
    assert _maybe_modify_runtime_env({}, False) == {}
assert "py_executable" in _maybe_modify_runtime_env({}, False), "this process does not seem to run under uv"
"""


def test_uv_starts_no_workers(tmp_path: Path) -> None:
    """Under a process that looks like `uv run`: Ray then has workers started by uv, too."""
    (tmp_path / "run").write_text(
        f"import subprocess, sys\nsubprocess.run([{sys.executable!r}, '-c', {_UNDER_UV!r}], check=True)\n"
    )
    subprocess.run(["uv", "run"], executable=sys.executable, check=True, cwd=tmp_path, timeout=60)


def test_the_raylet_knows_the_flag_for_the_agent_s_port() -> None:
    raylet = Path(ray.__file__).parent / "core/src/ray/raylet/raylet"
    told = subprocess.run([raylet, "--help"], capture_output=True, text=True, timeout=60).stdout
    assert "-dashboard_agent_listen_port" in told


def test_ray_and_serve_know_the_variables_that_are_set() -> None:
    package = Path(ray.__file__).parent
    raylet = (package / "core/src/ray/raylet/raylet").read_bytes()
    python = (package / "serve/_private/constants.py").read_text() + (package / "_private/node.py").read_text()
    python += (package / "_private/ray_constants.py").read_text() + (
        package / "_common/usage/usage_constants.py"
    ).read_text()
    python += (package / "_private/accelerators/accelerator.py").read_text()
    names = [name for name in env.of_private_ray("t") if name.startswith("RAY_") and name != "RAY_ADDRESS"]
    assert len(names) > 8
    assert not [n for n in names if n not in python and n.removeprefix("RAY_").encode() not in raylet]


def test_serve_waits_longer_for_its_proxy_only_meanwhile() -> None:
    before = serve_api.HTTP_PROXY_TIMEOUT
    with ray_private.patient_serve(before + 1):
        assert serve_api.HTTP_PROXY_TIMEOUT == serve_client.HTTP_PROXY_TIMEOUT == before + 1
    assert serve_api.HTTP_PROXY_TIMEOUT == serve_client.HTTP_PROXY_TIMEOUT == before


def test_a_port_that_says_nothing_is_no_ray() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent, pytest.raises(OSError, match="after at most 1 s"):
        ray_private.versions(f"127.0.0.1:{silent.getsockname()[1]}", 1.0)


_TOKEN = """
from experts import ray_private
from experts.env import environment
assert not ray_private.shows_token()
with environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32}):
    ray_private.forget_token()
    assert ray_private.shows_token() and ray_private.token_is_there()
ray_private.forget_token()
assert not ray_private.shows_token()
"""


def test_the_token_is_read_anew(tmp_path: Path) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", _TOKEN], check=True, timeout=60, env=own)


@pytest.mark.parametrize(
    ("own", "turns"), [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, None), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_ranks_spin_little_unless_the_user_chose(
    monkeypatch: pytest.MonkeyPatch, own: dict[str, str], turns: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    assert env.of_private_ray("t").get("GOMP_SPINCOUNT") == turns


def test_a_replicas_inner_port_is_its_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/e2e/test_listeners.py sees it on a real one."""
    asked: list[str] = []
    monkeypatch.setattr(serve_replica, "add_port_to_grpc_server", lambda server, address: asked.append(address) or 7)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.5")
    ray_private.keep_inner_port_to_node()
    assert serve_replica.add_port_to_grpc_server(None, "[::]:0") == 7
    assert asked == ["10.0.0.5:0"]
    assert "add_port_to_grpc_server" in inspect.getsource(serve_replica), "Serve opens the port with it"


def test_serve_is_looked_for_again() -> None:
    assert "_set_global_client(None)" in inspect.getsource(context._disconnect)
    ray_private.forget_serve()
    assert context._global_client is None
