"""The whole server in one process, without Ray: a cell of one rank, and both front doors."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, cast

from cluster.control.cell import Cell
from cluster.control.orders import LocalOrders, in_process, local_worker
from cluster.plan import ServePlan
from cluster.serve.http_server import HttpServer
from cluster.state.events import EventLog
from cluster.watch.metrics import rank_metrics
from cluster.watch.recorder import RecordingEnd
from cluster.watch.status import StatusBook
from experts.address import joined
from experts.background import join_task, only_log, watch_task
from experts.dump import ProcessDump, dump_here, page
from experts.placement import Placement
from router_svc.api.engines import LocalEngines
from router_svc.api.grpc.server import GrpcServer
from router_svc.api.metrics import IngressMetrics
from router_svc.api.openai.app import build_app
from router_svc.api.service import Service, TextStack
from router_svc.worker import AttentionWorker

_LOOK = 0.1  # s between looks at what is loaded
_LAST_BYTES = 1.0  # s for answers that are complete to reach their clients
Progress = Callable[[int, int, int], None]  # rank, bytes done, bytes in all


class LocalAdmin:
    """AdminBackend of the one process."""

    def __init__(self, plan: ServePlan, cell: Cell, engines: LocalEngines, events: EventLog) -> None:
        self._cell, self._engines, self._events = cell, engines, events
        self._book = StatusBook(plan.name, plan.placement.slots_per_rank)

    async def status(self, events: bool = False) -> dict[str, Any]:
        cell, views = self._cell, await self._cell.views()
        state, reason = self._engines.state()
        found = self._book.status(views, cell.life.epoch, cell.placement, state, reason, cell.balancer_view)
        return found | ({"events": self._events.entries()} if events else {})

    async def rebalance(self, dry_run: bool) -> dict[str, Any]:
        return asdict(await self._cell.rebalance(dry_run))

    async def placement(self) -> Placement:
        return self._cell.placement

    async def dump(self) -> list[ProcessDump]:
        return await self._cell.dumps()

    async def metrics(self, ingress_page: str) -> str:
        cell, views = self._cell, await self._cell.views()
        return ingress_page + rank_metrics(views, self._book, cell.placement, cell.balancer_view)


class LocalServer:
    """Front doors over the one rank; `start` and `stop` in one event loop."""

    def __init__(self, plan: ServePlan) -> None:
        self.plan = plan
        self.grpc: GrpcServer | None = None
        self.service: Service | None = None
        self.events = EventLog()
        self.cell: Cell | None = None
        self._stopping = False
        self._http: HttpServer | None = None
        self.recorded = RecordingEnd()  # how the recording ended

    async def start(self, progress: Progress | None = None) -> None:
        """Load and listen; ready when it returns."""
        plan = self.plan
        text = TextStack.load(plan.folder, plan.spec, plan.config.reasoning_parser, plan.config.chat_template)
        self.engines = engines = LocalEngines(asyncio.get_running_loop())
        self.cell = cell = Cell(LocalOrders(plan, engines.deliver), in_process, self.events, self._changed)
        await self._start_cell(cell, progress)
        self.service = Service(text, engines, plan.limits, plan.info, IngressMetrics(plan.name))
        admin = LocalAdmin(plan, cell, engines, self.events)
        self.grpc = GrpcServer(self.service, admin, plan.config.listen_grpc)
        await self.grpc.start()
        where = partial(joined, plan.config.host)
        self._note("door", f"gRPC listens on {where(self.grpc.port)}")
        app = build_app(self.service, admin, plan.config.origins, process="server", strict=plan.config.strict_fields)
        self._http = HttpServer(app, plan.config.listen_http)
        await self._http.start(self._degrade)
        self._note("door", f"HTTP listens on {where(self.http_port)}")
        engines.attach(self.worker.post)
        await self.grpc.show_state("ready")

    @property
    def worker(self) -> AttentionWorker:
        """The one rank, once it has loaded."""
        assert self.cell is not None, "a server starts first"
        return cast(AttentionWorker, local_worker(self.cell.roster.seats[0].port))

    @property
    def http_port(self) -> int:
        """Where HTTP listens, 0 before it does."""
        return 0 if self._http is None else self._http.port

    def dump(self) -> str:
        """A page that says what this process is doing, from any thread; also while it loads."""
        running = self.cell is not None and self.cell.life.state != "starting"
        return page([dump_here("one process", self.worker.moment() if running else None)])

    async def stop(self, grace: float | None = None) -> None:
        """Refuse new work, let streams end within `grace` seconds (None: the plan's grace period), close."""
        if self.cell is None:
            return
        self._stopping = True
        self.engines.detach("stopping", "the server is shutting down")
        if self.grpc is not None and self.service is not None:
            await self.grpc.show_state("stopping")
            await self.service.drain(self.plan.config.grace_period if grace is None else grace)
            await self.grpc.stop(_LAST_BYTES)
        if self._http is not None:
            await self._http.stop()
        loaded = self.cell.life.state != "starting"
        self.recorded = await self.cell.stop()
        if loaded:
            await asyncio.to_thread(self.worker.close)

    async def _start_cell(self, cell: Cell, progress: Progress | None) -> None:
        starting = join_task("start of the rank", cell.start())
        done = False
        while not done:
            done = bool((await asyncio.wait([starting], timeout=_LOOK))[0])
            for rank, (read, total) in (await cell.progress()).items():
                if progress is not None and total:
                    progress(rank, read, total)
        await starting

    def _note(self, kind: str, what: str) -> None:
        self.events.add(time.time(), kind, what)

    async def _changed(self) -> None:
        """The cell's state changed."""
        assert self.cell is not None, "a cell that changes is there"
        life = self.cell.life
        if life.state == "degraded" and not self._stopping:
            self.engines.detach(life.state, life.reason)
            if self.grpc is not None:
                await self.grpc.show_state(life.state)

    def _degrade(self, what: str) -> None:
        """A part that nothing works without has ended: say so, and take no more requests."""
        if self.cell is not None and not self._stopping:
            watch_task("end of the epoch", self.cell.give_up(what), only_log, returns=True)
