"""`serve` on Ray: the supervisor with its ranks, a gRPC door and HTTP on Serve, on a Ray of our own or one that is there."""

import contextlib
import logging
import secrets
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from cluster.balance.trace import parts_of
from cluster.control.orders import Orders
from cluster.control.supervisor import Supervisor
from cluster.plan import ServePlan
from cluster.serve.http_door import HttpDoor
from cluster.serve.loading import LoadingView
from cluster.serve.notes import ready, say
from cluster.serve.ray_session import RaySession, StartFailed
from cluster.serve.run_local import ready_line, say_recorded
from cluster.serve.signals import Signals, Stopped
from cluster.watch.recorder import RecordingEnd
from experts.address import Listen, free_port, one_address
from experts.background import only_log, watch_thread
from experts.dump import ProcessDump, dump_here, page
from experts.worker import remote
from experts.worker.deadlines import DEADLINES
from experts.worker.remote import Gone, answered, wait
from router_svc.ingress.door import Door
from router_svc.ingress.ingress import IngressOrder

T = TypeVar("T")
_SERVE_START = 60.0  # s that Serve may take to start before it is stopped halfway
_STOP = 30.0  # s for the ranks to end together
_SAVE = 120.0  # s for a long recording to be written at the end; a second signal does not wait for it


class RayCluster:
    """Everything that `serve` starts on Ray. `stop` leaves nothing of it behind, nor does leaving a `with` block."""

    supervisor: Supervisor
    door: Door | None = None

    def __init__(self, orders: Orders, go_on: Callable[[], None] = lambda: None) -> None:
        """go_on: called every now and then while starting; what it raises breaks the start off."""
        plan = orders.plan
        http_port = plan.config.http_port or free_port(plan.config.host)
        self.plan = replace(plan, config=replace(plan.config, http_port=http_port))
        self._orders = replace(orders, plan=self.plan)
        self.namespace = f"tokenyard-{secrets.token_hex(4)}"
        self._session = RaySession(plan.config.ray_address, self.namespace)
        self._go_on = go_on
        self._trouble = False  # whether people were sent to the logs
        self._begun = False  # whether there is a supervisor
        self.grpc_port = 0
        self._http = HttpDoor(self.namespace, Listen(one_address(plan.config.host), http_port))
        self._serve: _Background | None = None
        self.recorded = RecordingEnd()  # how the recording ended, known after `stop`

    def __enter__(self) -> "RayCluster":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(clean=kind is None or kind is Stopped)

    @property
    def http_port(self) -> int:
        """Where HTTP listens."""
        return self.plan.config.http_port

    def start(self, view: LoadingView) -> None:
        """Bring all up; ready when it returns. Raises UserError for what the user can repair, and StartFailed."""
        loaded = self._start_supervisor()
        self._serve = _Background(self._http.start_serve)
        with self._waiting("the ranks"):
            self._wait(loaded, view)
        order = IngressOrder(
            self.plan.folder,
            self.plan.spec,
            self.plan.config.reasoning_parser,
            self.plan.limits,
            self.plan.info,
            self.plan.config.grace_period,
            self.plan.config.origins,
            self.plan.config.strict_fields,
            self.plan.config.chat_template,
        )
        options = self._options("door", 4096) | {"max_restarts": -1}
        self.door = door = remote.start(Door, options=options)
        port = door.start(order, self.supervisor, self.plan.config.listen_grpc)
        with self._waiting("Ray Serve with its HTTP proxy"):
            self._serve.join(self._go_on)
        with self._waiting("the HTTP application on Ray Serve"):
            self._http.run(order, self.supervisor)
        with self._waiting("the gRPC door"):
            self.grpc_port = self._result(port)
        remote.tell(self.supervisor.add_door(door, order, self.grpc_port))
        with self._waiting("the first answer on HTTP"):
            self._http.await_answer(self._go_on)
        listens = f"HTTP listens on {self.plan.config.host}:{self.http_port}"
        remote.tell(self.supervisor.note("door", listens))

    def start_ranks(self, view: LoadingView) -> None:
        """Bring the ranks up without a front door, for what measures them."""
        loaded = self._start_supervisor()
        with self._waiting("the ranks"):
            self._wait(loaded, view)

    def _start_supervisor(self) -> Awaitable[None]:
        self._go_on()
        self._session.start()
        if self.plan.device == "cuda":
            self._session.check_gpus(len(self.plan.seats))
        self._go_on()
        self.supervisor = remote.start(
            Supervisor, self._orders, self.namespace, self._session.log_folder, options=self._options("supervisor", 256)
        )
        self._begun = True
        return self.supervisor.start()

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        """Ray's and Serve's words for what did not come up are many lines long; the log has them."""
        try:
            yield
        except (Gone, RayError, RuntimeError, TimeoutError) as error:
            logging.getLogger(__name__).info("%s: %s", what, error)
            raise StartFailed(f"waited for {what}: {_kind(error)}; logs are in {self._session.log_folder}") from error

    def watch(self, asked: threading.Event, tell: Callable[[str], None]) -> None:
        """Pass on what happens to the cluster until `asked`. Raises RuntimeError once nobody leads the ranks any more."""
        version, said = -1, ""
        while not asked.is_set():
            news = self.supervisor.watch(version)
            while not answered(news, 0.5):
                if asked.is_set():
                    return
            try:
                version, state, reason = wait(news)
            except Gone:
                raise RuntimeError(f"the supervisor died; logs are in {self._session.log_folder}") from None
            self._trouble = self._trouble or state == "degraded"
            line = f"{state}: {reason}" if reason else f"{state} again"
            if line != said and (reason or said) and state != "stopping":
                tell(line)
            said = line if reason else ""

    def dump(self) -> str:
        """A page that says what every process is doing, from any thread; also while they start."""
        found = [dump_here("tokenyard serve")]
        if self._begun:
            try:
                found += wait(self.supervisor.dump(), DEADLINES.relay)
            except (TimeoutError, Gone, RayError) as error:
                found.append(ProcessDump("supervisor", 0, f"does not answer: {type(error).__name__}"))
        return page(found, self.namespace)

    def stop(self, clean: bool = True) -> None:
        """Drain the doors, end the ranks, then Ray if it is ours. clean: nobody needs its logs any more."""
        if self._serve is not None:  # Ray must not go while a thread is inside it
            self._serve.wait(_SERVE_START)
        grace = self.plan.config.grace_period if self.grpc_port else 0.0
        if self._begun:
            _quietly(lambda: self._stop_supervisor(grace))
        if (door := self.door) is not None:
            _quietly(lambda: wait(door.stop(1.0), 5))
        if ray.is_initialized():
            _quietly(lambda: self._http.stop(wait=not self._session.private))
            if not self._session.private:
                self._end_actors()
        self._session.end(clean and not self._trouble)

    def _stop_supervisor(self, grace: float) -> None:
        path, seconds = self.plan.config.record_loads, grace + _STOP
        if path is not None:
            seconds += _SAVE
            unheard = f"{path}: not heard of its end; what there is of it is in {parts_of(path)}"
            self.recorded = RecordingEnd(unheard, lost=True)
        self.recorded = wait(self.supervisor.stop(grace), seconds)

    def _end_actors(self) -> None:
        """Ranks are detached, so that they outlive a supervisor that failed; here nothing of ours may stay."""
        for found in ray.util.list_named_actors(all_namespaces=True):
            if found["namespace"] == self.namespace:
                _quietly(lambda name=found["name"]: ray.kill(ray.get_actor(name, self.namespace)))

    def _options(self, name: str, concurrency: int) -> dict[str, Any]:
        return {"name": name, "namespace": self.namespace, "num_cpus": 0, "max_concurrency": concurrency}

    def _wait(self, loaded: Awaitable[None], view: LoadingView) -> None:
        while True:
            done = answered(loaded, 0.2)
            with contextlib.suppress(Gone):
                for rank, (bytes_done, total) in wait(self.supervisor.progress()).items():
                    if total:
                        view.update(rank, bytes_done, total)
            if done:
                wait(loaded)
                return
            self._go_on()

    def _result(self, call: Awaitable[T]) -> T:
        while not answered(call, 0.2):
            self._go_on()
        return wait(call)


def run(plan: ServePlan, signals: Signals) -> None:
    """Serve until a signal asks to end."""
    signals.ask_first()
    with RayCluster(Orders(plan), signals.go_on) as cluster, contextlib.suppress(Stopped):
        signals.dump_by(cluster.dump)
        with LoadingView(plan.seats) as view:
            cluster.start(view)
        signals.go_on()
        ready(ready_line(plan, cluster.grpc_port, cluster.http_port))
        cluster.watch(signals.asked, lambda line: say(f"tokenyard: {line}"))
    say_recorded(cluster.recorded)


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


def _quietly(work: Any) -> None:
    """Shutting down goes on whatever one part of it says; what it says is logged."""
    try:
        work()
    except Exception as error:  # the rest must still be ended
        said = str(error).partition("\n")[0] or type(error).__name__
        logging.getLogger(__name__).warning("while stopping: %s", said)


def _kind(error: BaseException) -> str:
    """What kind of error it is, as people read it."""
    if isinstance(error, Gone):
        return "its process died"
    return (str(error).strip().splitlines() or [""])[-1] or type(error).__name__
