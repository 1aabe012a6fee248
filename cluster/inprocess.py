"""The whole server in one process, without Ray: one engine, its experts, and both front doors."""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from cluster.balance.loads import LoadCollector
from cluster.balancing import recording_of
from cluster.events import EventLog
from cluster.http_server import HttpServer
from cluster.metrics import rank_metrics
from cluster.plan import ServePlan
from cluster.recorder import Recording, RecordingEnd
from cluster.status import RankView, StatusBook
from experts.address import joined
from experts.background import only_log, watch_task, watch_thread
from experts.checkpoint.reader import CheckpointReader
from experts.crew import Crew
from experts.doorbell import Doorbell
from experts.dump import ProcessDump, dump_here, page
from experts.errors import UserError
from experts.exchange.local import LocalExchange
from experts.layers import ExpertLayers
from experts.loader import load_slots
from experts.placement import Placement
from experts.slots import ExpertSlots
from experts.threads import in_own_thread
from router_svc.api.engines import LocalEngines
from router_svc.api.grpc_server import GrpcServer
from router_svc.api.http import build_app
from router_svc.api.metrics import IngressMetrics
from router_svc.api.service import Service, TextStack
from router_svc.engine.batch import KVCache
from router_svc.engine.step_loop import Engine
from router_svc.models.decoder import CausalModel, build_model
from router_svc.request import Event

_LOOK = 0.5  # s between looks at the loads, where they are recorded
_LAST_BYTES = 1.0  # s for answers that are complete to reach their clients
Progress = Callable[[int, int, int], None]  # rank, bytes done, bytes in all


class LocalRank:
    """The one rank: model, experts and engine, with the step loop in a thread of its own."""

    def __init__(
        self, plan: ServePlan, deliver: Callable[[list[Event]], None], progress: Progress | None = None
    ) -> None:
        spec, device = plan.spec, plan.device
        model, slots, cache = in_own_thread(lambda: _load(plan, progress))
        exchange = LocalExchange(plan.placement, plan.engine.max_num_batched_tokens, device)
        self.experts = ExpertLayers(
            spec.experts, exchange, slots, plan.dtype, device, crew=Crew(plan.most_threads)
        )  # fmt: skip
        self.exchange = exchange
        bell = Doorbell()
        self.engine = Engine(model, self.experts, exchange, bell, plan.engine, cache, deliver, bell.ring)
        self._thread: threading.Thread | None = None

    def start(self, ended: Callable[[str], object]) -> None:
        """Run the step loop. ended: called from its thread, should it end before `stop`; then all requests fail."""

        def failed(what: str) -> None:
            ended(what)  # first, so that a client whose request fails finds the state degraded
            self.engine.fail(what)

        self._thread = watch_thread("step-loop", self.engine.run, failed, returns=True)

    def dump(self) -> ProcessDump:
        """What this process is doing; any thread."""
        return dump_here("one process", self.exchange.moment())

    def stop(self) -> None:
        """End the loop after its step, and wait for it."""
        self.engine.stop()
        if self._thread is not None:
            self._thread.join(10)


def _load(plan: ServePlan, progress: Progress | None) -> tuple[CausalModel, ExpertSlots, KVCache]:
    """The one rank's weights and cache."""
    spec, reader = plan.spec, CheckpointReader(plan.folder)
    slots = ExpertSlots(spec.experts, plan.placement.slots_per_rank, plan.dtype, plan.device)
    model_bytes = 0

    def model_progress(done: int, total: int) -> None:
        nonlocal model_bytes
        model_bytes = total
        if progress is not None:
            progress(0, done, total + slots.nbytes)

    def slot_progress(done: int, total: int) -> None:
        if progress is not None:
            progress(0, model_bytes + done, model_bytes + total)

    model = build_model(spec, reader, plan.dtype, plan.device, model_progress)
    load_slots(slots, plan.placement.local(0), reader, slot_progress)
    cache = KVCache.allocate(
        spec.layers,
        plan.engine.kv_blocks,
        plan.engine.block_size,
        spec.kv_heads,
        spec.head_dim,
        plan.dtype,
        plan.device,
    )
    return model, slots, cache


class LocalAdmin:
    """AdminBackend of the one process."""

    def __init__(self, plan: ServePlan, rank: LocalRank, engines: LocalEngines, events: EventLog) -> None:
        self._plan, self._rank, self._engines, self._events = plan, rank, engines, events
        self._book = StatusBook(plan.name, plan.placement.slots_per_rank)

    async def status(self, events: bool = False) -> dict[str, Any]:
        state, reason = self._engines.state()
        view = RankView.here(self._plan.seats[0], self._rank.experts.loads.snapshot(), self._rank.engine.stats())
        told = self._book.status([view], 0, self._plan.placement.version, state, reason)
        return told | ({"events": self._events.told()} if events else {})

    async def rebalance(self, dry_run: bool) -> dict[str, Any]:
        raise UserError("one process", "at least 2 ranks with experts, between which experts can move", "rebalance")

    async def placement(self) -> Placement:
        return self._plan.placement

    async def dump(self) -> list[ProcessDump]:
        return [self._rank.dump()]

    async def metrics(self, ingress_page: str) -> str:
        rank = self._rank
        views = [
            RankView.here(
                self._plan.seats[0], rank.experts.loads.snapshot(), rank.engine.stats(), rank.exchange.counters
            )
        ]
        return ingress_page + rank_metrics(views, self._book, self._plan.placement)


class LocalServer:
    """Front doors over the one rank; `start` and `stop` in one event loop."""

    def __init__(self, plan: ServePlan) -> None:
        self.plan = plan
        self.rank: LocalRank | None = None
        self.grpc: GrpcServer | None = None
        self.service: Service | None = None
        self.events = EventLog()
        self._stopping = False
        self._http: HttpServer | None = None
        self._recording: Recording | None = None
        self.recorded = RecordingEnd()  # how the recording ended

    async def start(self, progress: Progress | None = None) -> None:
        """Load and listen; ready when it returns."""
        plan = self.plan
        loop = self._loop = asyncio.get_running_loop()
        text = TextStack.load(plan.folder, plan.spec, plan.config.reasoning_parser)
        engines = LocalEngines(loop)
        self._note("starting", f"{plan.name} in one process")
        self.rank = await asyncio.to_thread(self._load, engines.deliver, progress)
        self._note("balancing", "off: one rank holds all experts")
        self.engines = engines
        self._recording = recording_of(plan, self._note)
        if self._recording is not None:
            self._collector = LoadCollector(self.rank.exchange.epoch, plan.placement, [0], [0])
            self._taking = watch_task("loads", self._record(self._recording), partial(self._note, "recording"))
        self.service = Service(text, engines, plan.limits, plan.info, IngressMetrics(plan.name))
        admin = LocalAdmin(plan, self.rank, engines, self.events)
        self.grpc = GrpcServer(self.service, admin, plan.config.host, plan.config.grpc_port)
        await self.grpc.start()
        where = partial(joined, plan.config.host)
        self._note("door", f"gRPC listens on {where(self.grpc.port)}")
        app = build_app(self.service, admin, plan.config.origins, process="server")
        self._http = HttpServer(app, plan.config.host, plan.config.http_port)
        await self._http.start(self._degrade)
        self._note("door", f"HTTP listens on {where(self.http_port)}")
        self.rank.start(self._failed)
        engines.attach(self.rank.engine.post)
        await self.grpc.show_state("ready")

    def _load(self, deliver: Callable[[list[Event]], None], progress: Progress | None) -> LocalRank:
        began, read = time.monotonic(), 0

        def note(rank: int, done: int, total: int) -> None:
            nonlocal read
            read = done
            if progress is not None:
                progress(rank, done, total)

        rank = LocalRank(self.plan, deliver, note)
        self._note(
            "loaded", f"rank 0 (both, pid {os.getpid()}): {read / 1e6:.1f} MB in {time.monotonic() - began:.1f} s"
        )
        return rank

    @property
    def http_port(self) -> int:
        """Where HTTP listens, 0 before it does."""
        return 0 if self._http is None else self._http.port

    def _note(self, kind: str, what: str) -> None:
        self.events.add(time.time(), kind, what)

    def _failed(self, what: str) -> None:
        """The step thread ended; called from it."""
        self._loop.call_soon_threadsafe(self._degrade, what)

    def _degrade(self, what: str) -> None:
        """A part that nothing works without has ended: say so, and take no more requests."""
        if self._stopping:
            return
        reason = f"{what}; stop this server and start it again (tokenyard serve)"
        self._note("degraded", reason)
        self.engines.detach("degraded", reason)
        if self.grpc is not None:
            watch_task("health", self.grpc.show_state("degraded"), only_log, returns=True)

    async def _record(self, recording: Recording) -> None:
        """Keep the loads of every step until the server stops."""
        while True:
            await asyncio.sleep(_LOOK)
            self._take_steps(recording)

    def _take_steps(self, recording: Recording) -> None:
        assert self.rank is not None, "there is a rank before there are steps"
        self._collector.add(0, self.rank.experts.loads.drain())
        for row in self._collector.take():
            recording.add(row)

    def dump(self) -> str:
        """A page that says what this process is doing, from any thread; also while it loads."""
        return page([dump_here("one process") if self.rank is None else self.rank.dump()])

    async def stop(self, grace: float | None = None) -> None:
        """Refuse new work, let streams end within `grace` seconds (None: the plan's grace period), close."""
        if self.rank is None:
            return
        self._stopping = True
        self.engines.detach("stopping", "the server is shutting down")
        if self.grpc is not None and self.service is not None:
            await self.grpc.show_state("stopping")
            await self.service.drain(self.plan.config.grace_period if grace is None else grace)
            await self.grpc.stop(_LAST_BYTES)
        if self._http is not None:
            await self._http.stop()
        await asyncio.to_thread(self.rank.stop)
        if self._recording is not None:
            self._taking.cancel()
            self._take_steps(self._recording)
            self.recorded = await self._recording.end()
