"""The supervisor: a Ray actor without a rank. Owns membership, epochs and the rendezvous store; starts, watches, ends.

Its decisions are Lifecycle's; this file carries them out.
"""

import asyncio
import logging
import secrets
import time
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayActorError

from cluster.balance.policies.registry import load_policy
from cluster.events import EventLog
from cluster.lifecycle import Lifecycle
from cluster.metrics import merge_pages, rank_metrics
from cluster.plan import ServePlan, balances
from cluster.ranks import RankHandle, RayPort, start_rank
from cluster.rebalance import Balancer, BalancerSettings
from cluster.recorder import LoadRecorder
from cluster.status import BalancerView, RankView, StatusBook
from experts.errors import UserError
from experts.exchange.group import open_store
from experts.lease import RENEW
from experts.membership import EpochRecord, Membership
from experts.placement import Placement
from experts.rank import RankReport
from experts.slots import slot_bytes
from router_svc.engine.step_loop import EngineStats
from router_svc.ingress import IngressOrder
from router_svc.link.client import LinkAddress

log = logging.getLogger(__name__)
GROUP_TIMEOUT = 30.0  # s, of building a group and of every collective
_CULPRIT_WAIT = 0.5  # s that a broken group waits for news of a death, to name it
_ANSWER = 2.0  # s for a process's event loop to answer: a stopped one must not hold up status, metrics or a verdict
_DOOR_PAUSE = 0.5  # s between attempts to open a door again


class Supervisor:
    """See the module. Every method is called through Ray; none blocks the event loop."""

    def __init__(self, plan: ServePlan, namespace: str, log_dir: str) -> None:
        self._plan = plan
        self._namespace = namespace
        self._log_dir = log_dir
        self._secret = secrets.token_hex(32)
        self._life = Lifecycle(plan.seats)
        self._changed = asyncio.Condition()
        self._ranks: list[RankHandle] = []
        self._doors: list[Any] = []
        self._book = StatusBook(plan.name, plan.placement.slots_per_rank)
        self._watchers: list[asyncio.Task[None]] = []
        self._door_watchers: list[asyncio.Task[None]] = []
        self._reports: dict[int, tuple[RankReport, EngineStats | None]] = {}
        self._events = EventLog()
        self._balancer: Balancer | None = None
        self._balancing: asyncio.Task[None] | None = None
        self._recorder: LoadRecorder | None = None
        if plan.config.record_loads is not None:
            self._recorder = LoadRecorder(plan.config.record_loads, plan.name, plan.spec.experts.top_k)

    async def start(self) -> None:
        """Start all ranks, load them at once, and build the first epoch."""
        self._store = open_store("127.0.0.1")
        self._ranks = [start_rank(self._plan, seat, self._secret, self._namespace) for seat in self._plan.seats]
        self._keeping = asyncio.create_task(self._keep_ranks())
        ports = await asyncio.gather(*(handle.actor.load.remote() for handle in self._ranks))
        reports = await asyncio.gather(*(self._report(handle) for handle in self._ranks))
        for handle, port, (report, _) in zip(self._ranks, ports, reports, strict=True):
            handle.link_port = port or 0
            handle.seat = replace(handle.seat, pid=report.pid)
        self._life.seats = tuple(handle.seat for handle in self._ranks)
        await self._enter_epoch()

    async def progress(self) -> dict[int, tuple[int, int]]:
        """Bytes loaded and in all, of each rank that answers."""
        handles = list(self._ranks)
        got = await asyncio.gather(*(h.actor.progress.remote() for h in handles), return_exceptions=True)
        return {h.seat.rank: g for h, g in zip(handles, got, strict=True) if not isinstance(g, BaseException)}

    async def links(self) -> tuple[str, list[LinkAddress]]:
        """(secret, where attention ranks listen)."""
        return self._secret, [
            LinkAddress(h.seat.rank, h.seat.node_ip, h.link_port) for h in self._ranks if h.seat.runs_attention
        ]

    async def watch(self, known: int) -> tuple[int, str, str]:
        """(version, state, reason), as soon as the version is not `known`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._life.version != known)
            return self._life.version, self._life.state, self._life.reason

    async def status(self, events: bool = False) -> dict[str, Any]:
        """The object of `status --json`; events: with the event log."""
        views = await self._views()
        life, version = self._life, self._placement.version
        told = self._book.status(views, life.epoch, version, life.state, life.reason, self._balancer_view)
        return told | ({"events": self._events.told()} if events else {})

    async def placement(self) -> Placement:
        """The placement in use."""
        return self._placement

    async def rebalance(self, dry_run: bool) -> dict[str, Any]:
        """Plan now, and move unless `dry_run`: the fields of RebalanceResponse. Raises UserError."""
        if self._balancer is None or self._balancing is None:
            raise UserError(f"a cluster that is {self._life.state}", "one that serves", "rebalance")
        if self._placement.ranks < 2:
            raise UserError("one rank with experts", "at least 2, between which experts can move", "rebalance")
        decision = await self._balancer.rebalance(dry_run)
        return {
            "placement_version": self._placement.version, "moves": decision.moves, "excess_before": decision.before,
            "excess_after": decision.after, "transfer_seconds": decision.cost, "text": decision.text,
        }  # fmt: skip

    async def counted(self) -> list[tuple[int, int, float]]:
        """Of the newest steps: (step, tokens of the busiest ranks, of the mean rank), over all layers."""
        if self._balancer is None:
            return []
        await self._balancer.look()
        return list(self._balancer.counted)

    async def source(self) -> Any:
        """The actor that brings a simulation's tokens."""
        return next(handle.actor for handle in self._ranks if handle.seat.runs_attention)

    @property
    def _placement(self) -> Placement:
        return self._plan.placement if self._balancer is None else self._balancer.placement

    @property
    def _balancer_view(self) -> BalancerView | None:
        return None if self._balancer is None else self._balancer.view

    async def add_door(self, door: Any, order: IngressOrder, port: int) -> None:
        """Watch a door that listens on `port`, and put its metrics on the cluster's page."""
        self._doors.append(door)
        self._door_watchers.append(asyncio.create_task(self._watch_door(door, order, port)))

    async def metrics(self, ingress_page: str) -> str:
        """Prometheus text of the whole cluster: an ingress's own page, the doors' and the ranks'."""
        asked = (asyncio.wait_for(door.metrics.remote(), _ANSWER) for door in self._doors)
        pages = await asyncio.gather(*asked, return_exceptions=True)
        told = [page for page in pages if not isinstance(page, BaseException)]
        return merge_pages([ingress_page, *told]) + rank_metrics(
            await self._views(), self._book, self._placement, self._balancer_view
        )

    async def stop(self) -> None:
        """End the step loops together, then the ranks' processes."""
        self._life.stop()
        await self._tell()
        await self._stop_balancing()
        attention = [h for h in self._ranks if h.seat.runs_attention and self._life.seat_states[h.seat.rank] == "ready"]
        for handle in attention:
            handle.actor.stop.remote()
        waits = [asyncio.ensure_future(h.actor.ended.remote()) for h in self._ranks if h in attention]
        if waits:
            await asyncio.wait(waits, timeout=5)
        for watcher in (*self._watchers, *self._door_watchers):
            watcher.cancel()
        for handle in self._ranks:
            ray.kill(handle.actor)

    async def _keep_ranks(self) -> None:
        """Renew every rank's lease for as long as this process lives."""
        while True:
            live = [h for h in self._ranks if self._life.seat_states[h.seat.rank] != "dead"]
            await asyncio.gather(asyncio.sleep(RENEW), *(self._keep(handle) for handle in live))

    async def _keep(self, handle: RankHandle) -> None:
        """Renew a rank's lease; one that serves and does not answer hangs."""
        try:
            await asyncio.wait_for(handle.actor.keep.remote(), GROUP_TIMEOUT)
        except TimeoutError:
            if self._life.state == "ready":
                await self._hung(handle)
        except RayActorError as error:  # whoever waits on `ended` deals with it
            log.info("%s can't be kept: %s", handle.title, error)

    async def _enter_epoch(self) -> None:
        epoch = self._life.next_epoch()
        membership = Membership(epoch, self._life.live, self._plan.placement.version)
        record = EpochRecord(membership, "127.0.0.1", self._store.port, GROUP_TIMEOUT)
        joins = []
        for handle in self._ranks:
            if handle.seat.runs_attention:
                peers = [other.actor for other in self._ranks if other is not handle]
                joins.append(handle.actor.join.remote(record, peers))
            else:
                joins.append(handle.actor.join.remote(record))
        await asyncio.gather(*joins)
        self._watchers = [asyncio.create_task(self._watch_rank(handle)) for handle in self._ranks]
        self._life.joined(epoch)
        await self._start_balancing()
        await self._tell()

    async def _start_balancing(self) -> None:
        """Watch the loads from now on, and act on them where that is wanted."""
        plan = self._plan
        reports = await asyncio.gather(*(self._report(handle) for handle in self._ranks))
        ports = [RayPort(h, report.weights_port) for h, (report, _) in zip(self._ranks, reports, strict=True)]
        settings = BalancerSettings(
            enabled=balances(plan.config, plan.placement),
            expert_bytes=slot_bytes(plan.spec.experts, plan.dtype),
            least_pairs=8 * plan.spec.experts.experts if plan.synthetic is None else 1,
            interval=plan.config.eplb_interval,
        )
        policy = load_policy(plan.config.eplb_policy)
        self._balancer = Balancer(ports, plan.placement, policy, settings, self._events, self._recorder)
        self._balancing = asyncio.create_task(self._balancer.run())

    async def _stop_balancing(self) -> None:
        """No more moves; what was recorded is written."""
        if self._balancing is None or self._balancer is None:
            return
        self._balancing.cancel()
        self._balancing = None
        if self._recorder is not None:
            try:
                if self._life.state == "stopping":
                    await asyncio.wait_for(self._balancer.look(), _ANSWER)
            except (TimeoutError, RayActorError) as error:
                log.warning("the newest steps are not in the trace: %s", error)
            await asyncio.to_thread(self._recorder.save)

    async def _watch_rank(self, handle: RankHandle) -> None:
        """Wait on a rank for as long as it lives; Ray ends the call within milliseconds of its death."""
        try:
            reason = await handle.actor.ended.remote()
        except RayActorError:
            await self._lost(handle)
            return
        if not reason or self._life.state in ("stopping", "degraded"):
            return
        await asyncio.sleep(_CULPRIT_WAIT)  # a peer's death breaks the group before Ray tells of it
        if self._life.state != "ready":
            return
        answers = await asyncio.gather(*(self._answers(h) for h in self._ranks))
        silent = [h for h, answered in zip(self._ranks, answers, strict=True) if not answered]
        if self._life.state != "ready":
            return
        if silent:  # its peers only know that they waited, and often on another that waited too
            await self._hung(silent[0])
            return
        self._life.broke(f"{handle.title} left the group: {reason}")
        await self._end_epoch()

    async def _answers(self, handle: RankHandle) -> bool:
        """Whether a rank's process still reacts; a dead one is its watcher's business."""
        try:
            await asyncio.wait_for(handle.actor.keep.remote(), _ANSWER)
        except TimeoutError:
            return False
        except RayActorError:
            return True
        return True

    async def _hung(self, handle: RankHandle) -> None:
        """A rank that does not answer is given up, and ended as soon as it reacts: its group went on without it."""
        if self._life.seat_states[handle.seat.rank] == "dead":
            return
        self._life.died(handle.seat.rank, f"{handle.title} does not answer any more; logs are in {self._log_dir}")
        log.error("%s", self._life.reason)
        ray.kill(handle.actor)
        await self._end_epoch()

    async def _watch_door(self, door: Any, order: IngressOrder, port: int) -> None:
        """Open a door again that died: Ray starts its process anew, which then knows no port yet."""
        while self._life.state != "stopping":
            try:
                await door.ended.remote()
                return  # closed on purpose
            except RayActorError as error:
                log.error("the gRPC door died: %s", error)
            self._life.notice("the gRPC door died and is started again")
            await self._tell()
            while not await self._reopened(door, order, port):
                await asyncio.sleep(_DOOR_PAUSE)
            self._life.notice("")
            await self._tell()

    async def _reopened(self, door: Any, order: IngressOrder, port: int) -> bool:
        me = ray.get_runtime_context().current_actor
        try:
            await door.start.remote(order, me, self._plan.config.host, port)
        except (RayActorError, UserError) as error:  # not up yet; or someone took the port meanwhile
            log.warning("the gRPC door is not back yet: %s", error)
            return False
        return True

    async def _lost(self, handle: RankHandle) -> None:
        if self._life.seat_states[handle.seat.rank] == "dead":
            return  # ended by us
        self._life.died(handle.seat.rank, f"{handle.title} died; logs are in {self._log_dir}")
        if self._life.state != "stopping":
            log.error("%s", self._life.reason)
            await self._end_epoch()

    async def _end_epoch(self) -> None:
        """Tell every survivor to leave, with the reason that its requests end with, and the ingresses to refuse."""
        reason = self._life.reason
        self._events.add(time.time(), "degraded", reason)
        for handle in self._ranks:
            if self._life.seat_states[handle.seat.rank] != "dead":
                handle.actor.leave.remote(reason)
        await self._tell()
        await self._stop_balancing()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _report(self, handle: RankHandle) -> tuple[RankReport, EngineStats | None]:
        got = await asyncio.wait_for(handle.actor.report.remote(), _ANSWER)
        return got if isinstance(got, tuple) else (got, None)

    async def _views(self) -> list[RankView]:
        """Every rank's view; of a dead or silent one the last report."""
        live = [h for h in self._ranks if self._life.seat_states[h.seat.rank] != "dead"]
        got = await asyncio.gather(*(self._report(h) for h in live), return_exceptions=True)
        for handle, report in zip(live, got, strict=True):
            if not isinstance(report, BaseException):
                self._reports[handle.seat.rank] = report
        views = []
        for handle in self._ranks:
            rank = handle.seat.rank
            last = self._reports.get(rank)
            state = self._life.seat_states[rank]
            if last is None:
                views.append(RankView(handle.seat, state, None, None))
            else:
                totals, stats = last
                running = None if state == "dead" else stats
                views.append(RankView(handle.seat, state, totals.loads, running, totals.exchange))
        return views
