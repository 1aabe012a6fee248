"""The supervisor: a Ray actor without a rank. Owns membership, epochs and the rendezvous store; starts, watches, ends.

Its decisions are Lifecycle's; this file carries them out.
"""

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError

from cluster.balancing import balancer_of, recording_of
from cluster.doors import Doors
from cluster.drain import requests_end
from cluster.dumps import cluster_dump
from cluster.events import EventLog
from cluster.lifecycle import Lifecycle
from cluster.members import change_members
from cluster.metrics import merge_pages, process_page, rank_metrics
from cluster.plan import ServePlan
from cluster.rank_watch import RankWatch, end_of
from cluster.ranks import RankHandle, RayPort, policy_of, start_rank
from cluster.rebalance import Balancer, Counted
from cluster.recorder import Recording, RecordingEnd
from cluster.reports import ANSWER, NEEDED, RankReports, report_of
from cluster.status import BalancerView, StatusBook
from experts.background import join_task, watch_task
from experts.dump import ProcessDump
from experts.errors import UserError
from experts.exchange.group import open_store
from experts.membership import HERE, EpochRecord, Member, Membership
from experts.placement import Placement
from router_svc.ingress import IngressOrder
from router_svc.link.client import LinkAddress

log = logging.getLogger(__name__)
GROUP_TIMEOUT = 30.0  # s, of building a group and of every collective


class Supervisor:
    """See the module. Every method is called through Ray; none blocks the event loop."""

    def __init__(self, plan: ServePlan, namespace: str, log_dir: str) -> None:
        self._plan = plan
        self._namespace = namespace
        self._secret = secrets.token_hex(32)
        self._life = Lifecycle(plan.seats)
        self._changed = asyncio.Condition()
        self._ranks: list[RankHandle] = []
        self._starting: list[RankHandle] = []  # on seats that no epoch has yet
        self._incarnations: Counter[int] = Counter()
        self._book = StatusBook(plan.name, plan.placement.slots_per_rank)
        self._reports = RankReports()
        self._events = EventLog()
        self._notices: dict[str, str] = {}
        self._doors = Doors(plan.config.host, partial(self._notice, "door"), self._events)
        self._watch = RankWatch(self._life, lambda: self._ranks, log_dir, self._happened, self._end_epoch)
        self._balancer: Balancer | None = None
        self._balancing: asyncio.Task[None] | None = None
        self._recording: Recording | None = None

    async def start(self) -> None:
        """Start all ranks, load them at once, and build the first epoch."""
        loop = asyncio.get_running_loop()
        self._store = open_store(HERE, ended=lambda what: loop.call_soon_threadsafe(self._happened, "store", what))
        self._ranks = [start_rank(self._plan, seat, self._secret, self._namespace) for seat in self._plan.seats]
        for handle in self._ranks:
            self._watch.keep(handle)
        self._happened("starting", f"{self._plan.name} on {len(self._ranks)} ranks")
        await asyncio.gather(*map(self._load, self._ranks))
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
        views = await self._reports.views(self._ranks, self._life.seat_states)
        life, version = self._life, self._placement.version
        told = self._book.status(views, life.epoch, version, life.state, life.reason, self._balancer_view)
        return told | ({"events": self._events.told()} if events else {})

    async def dump(self) -> list[ProcessDump]:
        """What every process of the cluster is doing, this one first."""
        return await cluster_dump((*self._ranks, *self._starting), self._life.seat_states, self._doors.named)

    async def placement(self) -> Placement:
        """The placement in use."""
        return self._placement

    async def rebalance(self, dry_run: bool) -> dict[str, Any]:
        """Plan now, and move unless `dry_run`: the fields of RebalanceResponse. Raises UserError."""
        balancer = self._serving()
        if self._placement.ranks < 2:
            raise UserError("one rank with experts", "at least 2, between which experts can move", "rebalance")
        decision = await balancer.rebalance(dry_run)
        return {
            "placement_version": self._placement.version, "moves": decision.moves, "excess_before": decision.before,
            "excess_after": decision.after, "transfer_seconds": decision.cost, "text": decision.text,
        }  # fmt: skip

    async def release(self, rank: int) -> None:
        """Have a rank with experts leave while steps run: the others take over what it holds, then its process ends.

        Raises UserError when they can't.
        """
        balancer = self._serving()
        leaving = next((handle for handle in self._ranks if handle.seat.rank == rank), None)
        if leaving is None or leaving.seat.role != "expert":
            raise UserError(f"rank {rank}", "a rank that only holds experts", "release")
        async with balancer.quiet:
            await balancer.vacate(rank)
            await self._next_epoch([handle for handle in self._ranks if handle is not leaving], [])
            self._life.release(rank)
        ray.kill(leaving.actor)
        self._happened("left", f"{leaving.title}, since epoch {self._life.epoch}")

    async def admit(self, rank: int) -> None:
        """Start a process on a vacant seat with experts and take it in while steps run; it gets experts as loads ask.

        Raises UserError for a seat that the placement lacks or that is taken.
        """
        balancer, taken = self._serving(), {handle.seat.rank for handle in self._ranks}
        vacant = set(range(self._placement.ranks)) - taken
        if rank not in vacant:
            raise UserError(f"seat {rank}", f"a vacant one ({sorted(vacant) or 'there is none'})", "admit")
        async with balancer.quiet:
            joining = await self._joining(rank)
            try:
                await self._next_epoch(sorted((*self._ranks, joining), key=lambda h: h.seat.rank), [joining])
            except BaseException:
                ray.kill(joining.actor)
                raise
            finally:
                self._starting.remove(joining)
            self._life.admit(joining.seat)
        self._watch.watch(joining)
        self._happened("joined", f"{joining.title}, in epoch {self._life.epoch}")

    async def counted(self) -> list[Counted]:
        """The newest steps."""
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
        self._doors.add(door, order, port)
        self._happened("door", f"gRPC listens on {self._plan.config.host}:{port}")

    async def note(self, kind: str, text: str) -> None:
        """Put into the event log what happened elsewhere."""
        self._happened(kind, text)

    async def metrics(self, ingress_page: str) -> str:
        """Prometheus text of the whole cluster: an ingress's own page, the doors' and the ranks'."""
        views = await self._reports.views(self._ranks, self._life.seat_states)
        own = process_page("supervisor", views, self._book.model)
        merged = merge_pages([ingress_page, *await self._doors.pages(), own])
        return merged + rank_metrics(views, self._book, self._placement, self._balancer_view)

    async def stop(self, grace: float = 0.0) -> RecordingEnd:
        """Have ingresses see requests out for `grace` seconds, end the step loops together, then the ranks' processes.

        How the recording ended is returned.
        """
        self._life.stop()
        await self._tell()
        await requests_end(lambda: self._reports.views(self._ranks, self._life.seat_states), grace)
        recorded = await self._stop_balancing()
        attention = [h for h in self._ranks if h.seat.runs_attention and self._life.seat_states[h.seat.rank] == "ready"]
        for handle in attention:
            handle.actor.stop.remote()
        waits = [join_task("end of a rank", end_of(handle)) for handle in attention]
        if waits:
            await asyncio.wait(waits, timeout=5)
        self._doors.stop_watching()
        self._watch.stop()
        for handle in (*self._ranks, *self._starting):
            ray.kill(handle.actor)
        return recorded

    def _happened(self, kind: str, text: str) -> None:
        self._events.add(time.time(), kind, text)

    async def _unbalanced(self, what: str) -> None:
        """Ranks serve on under the placement that they have."""
        self._happened("balancer", what)
        await self._notice("balancer", f"{what}: loads are no longer balanced")

    def _serving(self) -> Balancer:
        """The balancer of a cluster that serves. Raises UserError for one that does not."""
        if self._balancer is None or self._balancing is None:
            raise UserError(f"a cluster that is {self._life.state}", "one that serves", "supervisor")
        return self._balancer

    async def _joining(self, rank: int) -> RankHandle:
        """A new process for a seat, loaded with what the placement in use has there: nothing."""
        self._incarnations[rank] += 1
        seat = Member(rank, "expert", self._incarnations[rank])
        plan = replace(self._plan, placement=self._placement)
        handle = start_rank(plan, seat, self._secret, self._namespace, self._serving().split)
        self._starting.append(handle)
        self._watch.keep(handle)
        await self._load(handle)
        return handle

    async def _load(self, handle: RankHandle) -> None:
        """Have a rank read its weights; what it listens on and who it is are known from then on."""
        began = time.monotonic()
        handle.link_port = await handle.actor.load.remote() or 0
        seconds = time.monotonic() - began
        report, _ = await report_of(handle, NEEDED)
        handle.seat = replace(handle.seat, pid=report.pid)
        read, _ = await handle.actor.progress.remote()
        self._happened("loaded", f"{handle.title}: {read / 1e6:.1f} MB in {seconds:.1f} s")

    def _record(self, members: Sequence[RankHandle], planned: bool) -> EpochRecord:
        seats = tuple(handle.seat for handle in members)
        membership = Membership(self._life.next_epoch(), seats, self._placement.version)
        return EpochRecord(membership, HERE, self._store.port, GROUP_TIMEOUT, planned)

    async def _next_epoch(self, members: Sequence[RankHandle], joining: Sequence[RankHandle]) -> None:
        """From the running epoch to the next one, without a pause. Raises ChangeFailed."""
        record = self._record(members, planned=True)
        await change_members(self._ranks, joining, record)
        self._ranks = list(members)
        self._life.entered(record.membership.epoch)
        await self._serving().meet(record.membership.epoch, await self._ports())

    async def _ports(self) -> list[RayPort]:
        reports = await asyncio.gather(*(report_of(handle, NEEDED) for handle in self._ranks))
        return [RayPort(h, report.weights_port) for h, (report, _) in zip(self._ranks, reports, strict=True)]

    async def _enter_epoch(self) -> None:
        record = self._record(self._ranks, planned=False)
        joins = []
        for handle in self._ranks:
            if handle.seat.runs_attention:
                peers = [other.actor for other in self._ranks if other is not handle]
                joins.append(handle.actor.join.remote(record, peers))
            else:
                joins.append(handle.actor.join.remote(record))
        began = time.monotonic()
        await asyncio.gather(*joins)
        seconds = time.monotonic() - began
        self._happened("epoch", f"epoch {record.membership.epoch}: {len(joins)} ranks met in {seconds:.1f} s")
        for handle in self._ranks:
            self._watch.watch(handle)
        self._life.joined(record.membership.epoch)
        await self._start_balancing()
        await self._tell()

    async def _start_balancing(self) -> None:
        """Watch the loads from now on, and act on them where that is wanted."""
        self._recording = recording_of(self._plan, self._happened)
        self._balancer = await balancer_of(
            self._plan, await self._ports(), policy_of(self._plan), self._events, self._recording
        )
        self._balancing = watch_task("balancer", self._balancer.run(), self._unbalanced)
        view = self._balancer.view
        self._happened(
            "balancing",
            f"off: {view.reason}; loads are counted" if view.state == "off" else f"on, policy {view.policy}",
        )

    async def _stop_balancing(self) -> RecordingEnd:
        """No more moves; what was recorded is written."""
        if self._balancing is not None and self._balancer is not None:
            self._balancing.cancel()
            self._balancing = None
            if self._recording is not None and self._life.state == "stopping":
                try:
                    await asyncio.wait_for(self._balancer.look(), ANSWER)
                except (TimeoutError, RayActorError) as error:
                    log.warning("the newest steps are not in the trace: %s", error)
        return RecordingEnd() if self._recording is None else await self._recording.end()

    async def _end_epoch(self) -> None:
        """Tell every survivor to leave, with the reason that its requests end with, and the ingresses to refuse."""
        reason = self._life.reason
        self._happened("degraded", reason)
        for handle in self._ranks:
            if self._life.seat_states[handle.seat.rank] != "dead":
                handle.actor.leave.remote(reason)
        await self._tell()
        await self._stop_balancing()

    async def _notice(self, about: str, what: str) -> None:
        """Show what people should know while the ranks serve on; empty when it is over."""
        self._notices[about] = what
        self._life.notice("; ".join(filter(None, self._notices.values())))
        await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
