"""`serve` on Ray: a private Ray or a running one, the supervisor with its ranks, a gRPC door and HTTP on Serve."""

import contextlib
import logging
import os
import secrets
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")

import ray
from ray import serve
from ray._private import ray_constants
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from cluster.loading import LoadingView
from cluster.notes import ready, say
from cluster.plan import ServePlan
from cluster.run_local import ready_line
from cluster.signals import Signals, Stopped
from cluster.supervisor import Supervisor
from experts.address import free_port, joined
from experts.background import only_log, watch_thread
from experts.dump import ProcessDump, dump_here, page
from experts.errors import UserError
from router_svc.door import Door
from router_svc.ingress import IngressOrder
from router_svc.serve_app import HttpReplica

_SERVE_START = 15.0  # s that Serve may take to start before it is stopped halfway
_DUMP = 6.0  # s for the supervisor, which gives ranks less, to answer
_OBJECT_STORE = 80 << 20  # bytes; tokens and weights never go through it


class RayCluster:
    """Everything that `serve` starts on Ray. `stop` leaves nothing of it behind."""

    def __init__(self, plan: ServePlan, go_on: Callable[[], None] = lambda: None) -> None:
        """go_on: called every now and then while starting; what it raises breaks the start off."""
        http_port = plan.config.http_port or free_port(plan.config.host)
        self.plan = replace(plan, config=replace(plan.config, http_port=http_port))
        self.namespace = f"tokenyard-{secrets.token_hex(4)}"
        self.app = self.namespace
        self.private = plan.config.ray_address is None and not os.environ.get("RAY_ADDRESS")
        self._go_on = go_on
        self.joined = False  # whether this object called ray.init
        self.supervisor: Any = None
        self.door: Any = None
        self.grpc_port = 0
        self._http: _Background | None = None
        self._served = False  # whether there may be something of ours on Serve

    @property
    def http_port(self) -> int:
        """Where HTTP listens."""
        return self.plan.config.http_port

    def start(self, view: LoadingView) -> None:
        """Bring all up; ready when it returns. Raises UserError for what the user can mend."""
        loaded = self._start_supervisor()
        self._http = _Background(self._start_serve)
        self._wait(loaded, view)
        order = IngressOrder(
            self.plan.folder,
            self.plan.spec,
            self.plan.config.reasoning_parser,
            self.plan.limits,
            self.plan.info,
            self.plan.config.grace_period,
        )
        self.door = ray.remote(Door).options(**self._options("door", 4096), max_restarts=-1).remote()
        port = self.door.start.remote(order, self.supervisor, self.plan.config.host, self.plan.config.grpc_port)
        self._http.join(self._go_on)
        deployment: Any = HttpReplica
        self._served = True
        serve.run(deployment.bind(order, self.supervisor), name=self.app, route_prefix="/")
        self.grpc_port = self._get(port)
        self.supervisor.add_door.remote(self.door, order, self.grpc_port)
        self._await_http()
        self.supervisor.note.remote("door", f"HTTP listens on {self.plan.config.host}:{self.http_port}")

    def start_ranks(self, view: LoadingView) -> None:
        """Bring the ranks up without a front door, for simulations."""
        self._wait(self._start_supervisor(), view)

    def _start_supervisor(self) -> Any:
        self._go_on()
        self._start_ray()
        self._go_on()
        self.supervisor = ray.remote(Supervisor).options(**self._options("supervisor", 256)).remote(
            self.plan, self.namespace, _log_dir()
        )  # fmt: skip
        return self.supervisor.start.remote()

    def watch(self, asked: threading.Event, tell: Callable[[str], None]) -> None:
        """Pass on what happens to the cluster until `asked`. Raises RuntimeError once nobody leads the ranks any more."""
        version, told = -1, ""
        while not asked.is_set():
            news = self.supervisor.watch.remote(version)
            while not ray.wait([news], timeout=0.5)[0]:
                if asked.is_set():
                    return
            try:
                version, state, reason = ray.get(news)
            except RayActorError:
                raise RuntimeError(f"the supervisor died; logs are in {_log_dir()}") from None
            line = f"{state}: {reason}" if reason else f"{state} again"
            if line != told and (reason or told) and state != "stopping":
                tell(line)
            told = line if reason else ""

    def dump(self) -> str:
        """A page that says what every process is doing, from any thread; also while they start."""
        found = [dump_here("tokenyard serve")]
        if self.supervisor is not None:
            try:
                found += ray.get(self.supervisor.dump.remote(), timeout=_DUMP)
            except (GetTimeoutError, RayError) as error:
                found.append(ProcessDump("supervisor", 0, f"does not answer: {type(error).__name__}"))
        return page(found, self.namespace)

    def stop(self) -> None:
        """Drain the doors, end the ranks, then Ray if it is ours."""
        if self._http is not None:  # Ray must not go while a thread is inside it
            self._http.wait(_SERVE_START)
        grace = self.plan.config.grace_period if self.grpc_port else 0.0
        if self.supervisor is not None:
            _quietly(lambda: ray.get(self.supervisor.stop.remote(grace), timeout=grace + 8))
        if self.door is not None:
            _quietly(lambda: ray.get(self.door.stop.remote(1.0), timeout=5))
        if not ray.is_initialized():
            return
        if self._served:
            _quietly(lambda: serve.delete(self.app, _blocking=not self.private))
        for actor in (self.door, self.supervisor):
            if actor is not None:
                _quietly(lambda actor=actor: ray.kill(actor))
        if self.joined:
            ray.shutdown()

    def _start_ray(self) -> None:
        for name in ("ray", "ray.serve"):
            logging.getLogger(name).setLevel(logging.ERROR)
        if ray.is_initialized():  # by whoever embeds this; its Ray outlives us
            self.private = False
            return
        common: dict[str, Any] = {
            "namespace": self.namespace, "log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True,
        }  # fmt: skip
        if not self.private:
            address = self.plan.config.ray_address or os.environ["RAY_ADDRESS"]
            try:
                ray.init(address=address, **common)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UserError(f"no Ray at {address} ({error})", "a running Ray", "--ray-address") from None
            self.joined = True
            return
        _keep_to_loopback()
        # Ranks of one machine share its cores by turns: one that spins at its barriers takes them from the others
        # (1 + 2 ranks on 2 cores: 54 tokens/s with libgomp's default, 85 with this).
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        # Serve's default finds a dead HTTP proxy after 30 s; three misses of this mean 6.
        os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "2")
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, object_store_memory=_OBJECT_STORE, **common
        )  # fmt: skip
        self.joined = True

    def _start_serve(self) -> None:
        config = self.plan.config
        logs = {"log_level": "WARNING", "enable_access_log": False}
        serve.start(
            http_options={"host": config.host, "port": config.http_port, "location": "HeadOnly"}, logging_config=logs
        )

    def _options(self, name: str, concurrency: int) -> dict[str, Any]:
        return {"name": name, "namespace": self.namespace, "num_cpus": 0, "max_concurrency": concurrency}

    def _wait(self, loaded: Any, view: LoadingView) -> None:
        while True:
            done, _ = ray.wait([loaded], timeout=0.2)
            with contextlib.suppress(RayActorError):
                for rank, (bytes_done, total) in ray.get(self.supervisor.progress.remote()).items():
                    if total:
                        view.update(rank, bytes_done, total)
            if done:
                _get(loaded)
                return
            self._go_on()

    def _get(self, reference: Any) -> Any:
        while not ray.wait([reference], timeout=0.2)[0]:
            self._go_on()
        return _get(reference)

    def _await_http(self) -> None:
        """The first call makes the replica connect."""
        url = f"http://{joined(self.plan.config.host, self.http_port)}/health"
        until = time.monotonic() + 30
        while True:
            self._go_on()
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                if time.monotonic() > until:
                    raise
            time.sleep(0.05)


def run(plan: ServePlan, signals: Signals) -> None:
    """Serve until a signal asks to end."""
    signals.ask_first()
    cluster = RayCluster(plan, signals.go_on)
    signals.dump_by(cluster.dump)
    try:
        with LoadingView(plan.seats) as view, contextlib.suppress(Stopped):
            cluster.start(view)
            signals.go_on()
            ready(ready_line(plan, cluster.grpc_port, cluster.http_port))
            cluster.watch(signals.asked, lambda line: say(f"tokenyard: {line}"))
    finally:
        cluster.stop()


def _keep_to_loopback() -> None:
    """A private Ray must not listen beyond this machine. Ray has a switch for that, named after other systems:
    without clusters its node is 127.0.0.1, and GCS and raylet bind there; any other address makes them bind all.
    """
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for the processes that Ray starts
    ray_constants.ENABLE_RAY_CLUSTER = False  # for this one, which has read the variable already


class _Background:
    """A thread whose error comes out of `join`."""

    def __init__(self, work: Any) -> None:
        self._error: BaseException | None = None
        self._thread = watch_thread("background", lambda: self._run(work), only_log, returns=True)

    def _run(self, work: Any) -> None:
        try:
            work()
        except BaseException as error:  # handed to `join`
            self._error = error

    def wait(self, seconds: float) -> None:
        """Until the work has ended, well or not, or `seconds` have passed."""
        self._thread.join(seconds)

    def join(self, go_on: Callable[[], None]) -> None:
        """Until the work has ended; raises its error, and what `go_on` raises meanwhile."""
        while self._thread.is_alive():
            self._thread.join(0.1)
            go_on()
        if self._error is not None:
            raise self._error


def _log_dir() -> str:
    """Where this Ray session's processes log."""
    return os.path.join(ray._private.worker._global_node.get_session_dir_path(), "logs")


def _get(reference: Any) -> Any:
    """A Ray result; a UserError of the other process comes out as itself."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def _quietly(work: Any) -> None:
    """Shutting down goes on whatever one part of it says; what it says is logged."""
    try:
        work()
    except Exception as error:  # the rest must still be ended
        told = str(error).partition("\n")[0] or type(error).__name__
        logging.getLogger(__name__).warning("while stopping: %s", told)
