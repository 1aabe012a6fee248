"""Every reach into Ray's private parts, as they are in Ray 2.60; tests/experts/test_ray_private.py guards them.

Each has no public way in that version; the docstrings say what it is for.
"""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import ray
from ray._common.usage import usage_constants
from ray._private import parameter, ray_constants, services, worker
from ray._private.authentication import authentication_utils
from ray._private.authentication.authentication_token_setup import Config
from ray._private.grpc_utils import init_grpc_channel
from ray._private.utils import compute_version_info, read_ray_address
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.job_config import JobConfig
from ray.serve._private import api as serve_api
from ray.serve._private import client as serve_client
from ray.serve._private import replica as serve_replica
from ray.serve.context import _disconnect, _get_global_client

from experts.address import free_port
from experts.epoch.membership import HERE

log = logging.getLogger(__name__)


class WantsToken(Exception):
    """A Ray refused a call without its token, or with another."""


def keep_to_loopback() -> None:
    """A private Ray must not listen beyond this machine. Ray has a switch for that, named after other systems:
    without clusters its node is 127.0.0.1, and GCS and raylet bind there; any other address makes them bind all.
    This process has read the variable already.
    """
    ray_constants.ENABLE_RAY_CLUSTER = False


def forget_token() -> None:
    """Have the token and Ray's settings read from the environment again; both are kept from their first use on."""
    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")


def token_is_there() -> bool:
    """Whether RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token holds one."""
    return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))


def shows_token() -> bool:
    """Whether this process's calls to Ray carry a token."""
    return bool(authentication_utils.is_token_auth_enabled())


def named_address() -> str | None:
    """The address that the last `ray start` on this machine left for `auto`."""
    return read_ray_address() or None


def our_path() -> JobConfig:
    """Have workers import what this process imports, in the same order. By itself Ray puts this process's current folder
    before everything else there, whatever lies in it; workers insert each entry at the front, so the last comes first.
    """
    return JobConfig(_py_driver_sys_path=_Sealed(reversed(sys.path)))


class _Sealed(list[str]):
    """Takes no more entries from `connect`."""

    def extend(self, more: Any) -> None:
        return


@contextmanager
def agent_ports() -> Iterator[None]:
    """Inside, `ray.init` starts a Ray whose agents' ports are chosen here, as the raylet waits no longer than 15 s to hear
    which ones they chose themselves."""
    params, start = parameter.RayParams, services.start_ray_process
    listen, metrics, runtime, export = (free_port(HERE) for _ in range(4))

    def start_with_port(command: list[str], process_type: str, *arguments: Any, **options: Any) -> Any:
        """The raylet has a flag for this port too, which Ray does not set."""
        if process_type == ray_constants.PROCESS_TYPE_RAYLET:
            command = [*command, f"--dashboard_agent_listen_port={listen}"]
        return start(command, process_type, *arguments, **options)

    def with_ports(*arguments: Any, **options: Any) -> Any:
        return params(
            *arguments, **options | {"metrics_export_port": export},
            dashboard_agent_listen_port=listen, metrics_agent_port=metrics, runtime_env_agent_port=runtime,
        )  # fmt: skip

    parameter.RayParams, services.start_ray_process = with_ports, start_with_port
    try:
        yield
    finally:
        parameter.RayParams, services.start_ray_process = params, start


def log_what_it_prints() -> None:
    """A thread that `ray.init` starts prints on stdout what happens to workers; whoever serves says so in words of its own."""

    def to_log(data: dict[str, Any], *arguments: Any, **options: Any) -> None:
        log.info("Ray: %s", " ".join(data["lines"]))

    worker.print_to_stdstream = to_log


@contextmanager
def without_uv() -> Iterator[None]:
    """Inside, `ray.init` does not have workers started through `uv run`, with the folder uploaded, under `uv run`."""
    before, ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV, False
    try:
        yield
    finally:
        ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = before


def versions(address: str, seconds: float) -> tuple[str, str]:
    """(Ray's, Python's) of the Ray at `address`, asked without Ray's own client, which waits for minutes.

    Raises WantsToken, and OSError when nothing that is a Ray answers within `seconds`.
    """
    channel = init_grpc_channel(address, [("grpc.enable_http_proxy", 0)])
    try:
        request = gcs_service_pb2.InternalKVGetRequest(
            key=usage_constants.CLUSTER_METADATA_KEY, namespace=ray_constants.KV_NAMESPACE_CLUSTER
        )
        reply = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel).InternalKVGet(request, timeout=seconds)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise WantsToken(error.details()) from None
        raise OSError(f"{error.code().name.lower().replace('_', ' ')} after at most {seconds:.0f} s") from None
    finally:
        channel.close()
    try:
        found = json.loads(reply.value)
        return str(found["ray_version"]), str(found["python_version"])
    except (ValueError, KeyError):
        raise OSError("it says nothing of its version") from None


def own_versions() -> tuple[str, str]:
    """(Ray's, Python's) of this process."""
    found: tuple[str, str] = compute_version_info()
    return found


def log_folder() -> str:
    """Where the processes of the Ray that this process uses log."""
    return f"{ray._private.worker._global_node.get_session_dir_path()}/logs"


def serve_http_place() -> tuple[str, int] | None:
    """(host, port) of the HTTP of the Serve that runs on this Ray; None without one."""
    client = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else (client.http_config.host, client.http_config.port)


def forget_serve() -> None:
    """Have Serve looked for again: its client is kept by the number of the job, and the first job of every Ray is 1."""
    _disconnect()


@contextmanager
def patient_serve(seconds: float) -> Iterator[None]:
    """Inside, starting Serve and an application on it waits so long for proxies; by itself 60 s."""
    before = serve_api.HTTP_PROXY_TIMEOUT
    serve_api.HTTP_PROXY_TIMEOUT = serve_client.HTTP_PROXY_TIMEOUT = seconds
    try:
        yield
    finally:
        serve_api.HTTP_PROXY_TIMEOUT = serve_client.HTTP_PROXY_TIMEOUT = before


def keep_inner_port_to_node() -> None:
    """Let Serve's proxies reach this process's replica at its node's address only: Serve opens a port without
    authentication on all interfaces, right after the deployment's constructor. tests/e2e/test_listeners.py looks at it.
    """
    listen = serve_replica.add_port_to_grpc_server
    host = ray.util.get_node_ip_address()
    host = f"[{host}]" if ":" in host else host
    serve_replica.add_port_to_grpc_server = lambda server, address: listen(server, address.replace("[::]:", f"{host}:"))
