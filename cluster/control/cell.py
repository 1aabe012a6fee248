"""Cell: one group of ranks with its roster, epochs, placement and balancer. Starts them, watches them, changes and ends them.

Knows neither doors nor how a rank's process is started: over Ray and inside one process it is the same. Lives in an event
loop and never blocks it.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence

from cluster.control.balancing import balancer_of, recording_of
from cluster.control.drain import requests_end
from cluster.control.epochs import ChangeFailed, Epochs
from cluster.control.mover import InUse, Stuck
from cluster.control.orders import Orders, Spawn
from cluster.control.rank_watch import RankWatch, end_of
from cluster.control.rebalance import Balancer, Counted, Decision
from cluster.control.recovery import Recovery, Starter, Unrecoverable
from cluster.state.events import EventLog
from cluster.state.lifecycle import Lifecycle
from cluster.state.roster import Roster, Seat
from cluster.watch.dumps import dumps_of
from cluster.watch.recorder import Recording, RecordingEnd
from cluster.watch.reports import view_of, views_of
from cluster.watch.status import BalancerView, RankView
from experts.background import join_task, only_log, watch_task
from experts.dump import ProcessDump
from experts.epoch.membership import HERE, EpochRecord, Member, Membership
from experts.errors import UserError
from experts.exchange.group import open_store
from experts.exchange.registry import exchange_kind
from experts.exchange.split import SplitPolicy
from experts.exchange.store import StoreServer
from experts.placement import Placement
from experts.worker import remote
from experts.worker.deadlines import DEADLINES
from experts.worker.remote import Gone, tell
from router_svc.link.client import LinkAddress

log = logging.getLogger(__name__)
_AGAIN = 5.0  # s between two tries to bring a seat back


class Cell:
    """See the module.

    life: its state, as others may read it
    events: gets what happens
    changed: called when `life` has changed
    log_dir: where the ranks' logs are, for people; empty where their lines are in this process's output
    """

    def __init__(
        self, orders: Orders, spawn: Spawn, events: EventLog, changed: Callable[[], Awaitable[None]], log_dir: str = ""
    ) -> None:
        self.life = Lifecycle()
        self.roster = Roster()
        self.secret = secrets.token_hex(32)
        self._orders, self._plan, self._spawn = orders, orders.plan, spawn
        self._events, self._changed = events, changed
        self._epochs = Epochs()
        self._watch = RankWatch(self.life, self.roster, log_dir, self._happened, self._end_epoch, self._lost)
        starter = Starter(self._started, self._load, self._record)
        self._recovery = Recovery(self.life, self.roster, self._epochs, starter, self._happened, changed)
        self._recovering_task: asyncio.Task[None] | None = None
        self._returns: list[asyncio.Task[None]] = []
        self._store: StoreServer | None = None
        self._balancer: Balancer | None = None
        self._balancing: asyncio.Task[None] | None = None
        self._notices: dict[str, str] = {}
        self._recording: Recording | None = None

    async def start(self) -> None:
        """Start all ranks, load them at once, and build the first epoch. Raises UserError for what can't be loaded."""
        plan = self._plan
        self.roster.seats = [self._started(member, plan.placement, self._orders.policy) for member in plan.seats]
        self._happened("starting", f"{plan.name} on {len(self.roster.seats)} ranks")
        await asyncio.gather(*map(self._load, self.roster.seats))
        await self._first_epoch()

    async def progress(self) -> dict[int, tuple[int, int]]:
        """Bytes loaded and in all, of each rank that answers."""
        seats = list(self.roster.seats)
        got = await asyncio.gather(*(seat.port.progress() for seat in seats), return_exceptions=True)
        return {seat.rank: g for seat, g in zip(seats, got, strict=True) if not isinstance(g, BaseException)}

    def links(self) -> list[LinkAddress]:
        """Where attention ranks listen."""
        return [LinkAddress(seat.rank, seat.member.node_ip, seat.link_port) for seat in self.roster.bringers]

    @property
    def placement(self) -> Placement:
        """The placement in use."""
        return self._plan.placement if self._balancer is None else self._balancer.placement

    @property
    def balancer_view(self) -> BalancerView | None:
        """The balancer at this moment, None before there is one."""
        return None if self._balancer is None else self._balancer.view

    async def views(self) -> list[RankView]:
        """Every rank of the epoch at this moment; of a silent one what was last heard."""
        return await views_of(self.roster.seats)

    def last_views(self) -> list[RankView]:
        """Every rank as it was last heard of."""
        return [view_of(seat) for seat in self.roster.seats]

    async def dumps(self) -> list[ProcessDump]:
        """What every rank's process is doing."""
        return await dumps_of(list(self.roster))

    async def rebalance(self, dry_run: bool) -> Decision:
        """Plan now, and move unless `dry_run`. Raises UserError."""
        balancer = self._serving()
        if self.placement.ranks < 2:
            raise UserError("one rank with experts", "at least 2, between which experts can move", "rebalance")
        return await balancer.rebalance(dry_run)

    async def counted(self) -> list[Counted]:
        """The newest steps."""
        if self._balancer is None:
            return []
        await self._balancer.look()
        return list(self._balancer.counted)

    async def release(self, rank: int) -> None:
        """Have a rank with experts leave while steps run: the others take over what it holds, then its process ends.

        Raises UserError when they can't.
        """
        balancer = self._serving()
        leaving = next((seat for seat in self.roster.seats if seat.rank == rank), None)
        if leaving is None or leaving.member.role != "expert":
            raise UserError(f"rank {rank}", "a rank that only holds experts", "release")
        async with balancer.quiet:
            await balancer.vacate(rank)
            await self._next_epoch([seat for seat in self.roster.seats if seat is not leaving], [leaving])
        remote.kill(leaving.port)
        self._happened("left", f"{leaving.title}, since epoch {self.life.epoch}")

    async def admit(self, rank: int) -> None:
        """Start a process on a vacant seat with experts and take it in while steps run; it gets experts as loads ask.

        Raises UserError for a seat that the placement lacks or that is taken.
        """
        balancer = self._serving()
        async with balancer.quiet:
            losses = balancer.losses
            vacant = set(range(self.placement.ranks)) - {seat.rank for seat in self.roster.seats}
            if rank not in vacant:
                raise UserError(f"seat {rank}", f"a vacant one ({sorted(vacant) or 'there is none'})", "admit")
            joining = self._started(self.roster.newcomer(rank, "expert"), self.placement, balancer.split)
            self.roster.starting.append(joining)
            try:
                await self._load(joining)
                if balancer.losses != losses:
                    raise UserError("another rank's loss while it loaded", "ranks that stay", "admit")
                await self._next_epoch(sorted((*self.roster.seats, joining), key=lambda s: s.rank), [])
            except BaseException:
                remote.kill(joining.port)
                raise
            finally:
                self.roster.starting.remove(joining)
            joining.state = "ready"
        self._watch.watch(joining)
        self._happened("joined", f"{joining.title}, in epoch {self.life.epoch}")

    async def notice(self, about: str, what: str) -> None:
        """Show what people should know while the ranks serve on; empty when it is over."""
        self._notices[about] = what
        self.life.notice("; ".join(filter(None, self._notices.values())))
        await self._changed()

    async def give_up(self, what: str) -> None:
        """End the epoch for good: a part that the cell can't serve without has ended."""
        await self._watch.give_up(what)

    async def stop(self, grace: float = 0.0) -> RecordingEnd:
        """Have ingresses see requests out for `grace` seconds, then end the step loops together; the ranks' processes stay.

        How the recording ended is returned.
        """
        self.life.stop()
        for task in filter(None, [self._recovering_task, *self._returns]):
            task.cancel()
        await self._changed()
        await requests_end(self.views, grace)
        recorded = await self._stop_balancing()
        bringers = [seat for seat in self.roster.bringers if seat.state == "ready"]
        for seat in bringers:
            tell(seat.port.stop())
        waits = [join_task("end of a rank", end_of(seat)) for seat in bringers]
        if waits:
            await asyncio.wait(waits, timeout=5)
        self._watch.stop()
        if self._store is not None:
            self._store.close()
        return recorded

    def _happened(self, kind: str, text: str) -> None:
        self._events.add(time.time(), kind, text)

    def _serving(self) -> Balancer:
        """The balancer of a cell that serves. Raises UserError for one that does not."""
        if self._balancer is None or self._balancing is None:
            raise UserError(f"a cluster that is {self.life.state}", "one that serves", "supervisor")
        return self._balancer

    def _started(self, member: Member, placement: Placement, policy: SplitPolicy) -> Seat:
        """A process for a seat, kept alive from now on; it loads nothing yet."""
        seat = Seat(member, self._spawn(self._orders.of(member, self.secret, placement, policy)))
        self._watch.keep(seat)
        return seat

    async def _load(self, seat: Seat) -> None:
        """Have a rank read its weights; what it listens on and who it is are known from then on."""
        began = time.monotonic()
        found = await seat.port.load()
        seat.loaded(found)
        self._happened("loaded", f"{seat.title}: {found.read / 1e6:.1f} MB in {time.monotonic() - began:.1f} s")

    def _record(self, number: int, members: Sequence[Seat], version: int, planned: bool) -> EpochRecord:
        """version: of the placement
        planned: members come to the first step by themselves
        """
        loop = asyncio.get_running_loop()
        if self._store is None and exchange_kind(self._plan.exchange).meets:
            self._store = open_store(HERE, ended=lambda what: loop.call_soon_threadsafe(self._happened, "store", what))
        seats = tuple(seat.member for seat in members)
        membership = Membership(number, seats, version)
        port = 0 if self._store is None else self._store.port
        connect = DEADLINES.connecting(len(seats)) if planned else DEADLINES.group  # nobody tries the first epoch again
        return EpochRecord(membership, HERE, port, DEADLINES.group, planned, connect)

    async def _first_epoch(self) -> None:
        seats, version = self.roster.seats, self.placement.version

        async def join(seat: Seat, number: int) -> None:
            others = self.roster.others(seat) if seat.member.runs_attention else []
            await seat.port.join(self._record(number, seats, version, False), others)

        began = time.monotonic()
        epoch = await self._epochs.enter(seats, [], False, join)
        seconds = time.monotonic() - began
        self._happened("epoch", f"epoch {epoch}: {len(seats)} ranks met in {seconds:.1f} s")
        for seat in seats:
            self._watch.watch(seat)
        if not self.life.joined(epoch):  # given up meanwhile
            for seat in self.roster.live:
                tell(seat.port.leave(self.life.reason))
            return
        for seat in self.roster.live:
            seat.state = "ready"
        await self._start_balancing()
        await self._changed()

    async def _next_epoch(self, members: Sequence[Seat], leaving: Sequence[Seat]) -> None:
        """From the running epoch to the next one, without a pause: its group is built beside the running steps, and taken
        at the header in which all say that they have it. Raises ChangeFailed; then the running epoch goes on."""
        running, version = list(self.roster.seats), self.placement.version
        staying = [seat for seat in running if seat in members]

        async def build(seat: Seat, number: int) -> None:
            record = self._record(number, members, version, True)
            await (seat.port.prepare(record) if seat in running else seat.port.join(record, []))

        everyone = sorted({*members, *leaving}, key=lambda seat: seat.rank)
        await _introduce(staying, everyone)  # who leaves is rung until it has had its last header
        try:
            epoch = await self._epochs.enter(members, leaving, True, build)
        except ChangeFailed as failed:
            for seat in running:
                if seat.rank in failed.silent and self.roster.sits(seat):
                    await self._watch.hung(seat)
            raise
        self.roster.seats = list(members)
        self.life.entered(epoch)
        await self._serving().meet(epoch, members)
        await _introduce(staying, members)

    async def _lost(self, seat: Seat | None, why: str) -> None:
        """A rank that only holds experts is lost, or none (None) and their group broke: the others go on without it, or with
        another process on its seat."""
        if seat is not None:
            self._recovery.note_death(seat.rank)
            self._epochs.lost(seat)
        self._epochs.broke()
        if self._balancer is not None:
            self._balancer.lost()
        if self._recovering_task is not None and not self._recovering_task.done():
            return  # which finds it when it counts who is left
        self._recovering_task = watch_task("recovery", self._recover(why), self._watch.give_up, returns=True)

    async def _recover(self, why: str) -> None:
        """Until nobody of the epoch is missing."""
        balancer = self._balancer
        if balancer is None:
            await self._watch.give_up(why)
            return
        known = balancer.in_use
        while True:
            try:
                found = await self._recovery.run(why, known)
            except Unrecoverable as error:
                await self._watch.give_up(str(error))
                return
            if not self._recovery.lost and not self.life.joined(found.epoch):
                return
            self.life.entered(found.epoch)
            known = InUse.only(found.placement, found.policy)
            for seat in found.seats:
                self._watch.watch(seat)
            if not self._recovery.lost:
                await balancer.recovered(found.epoch, found.seats, found.placement, found.policy)
                await self._changed()
            for rank in found.masked:
                work = self._return(rank, found.base)
                self._returns.append(watch_task(f"return of rank {rank}", work, only_log, returns=True))
            if not self._recovery.lost:
                return

    async def _return(self, rank: int, base: Placement) -> None:
        """Give a masked seat a new process, and the experts that the seat held."""
        while self.life.state in ("ready", "recovering"):
            if wait := self._recovery.wait_of(rank):
                self._happened("recovery", f"rank {rank} keeps dying: the next process in {wait:.0f} s")
                await asyncio.sleep(wait)
            try:
                if all(seat.rank != rank for seat in self.roster.seats):
                    await self.admit(rank)
                balancer = self._serving()
                async with balancer.quiet:
                    await balancer.restore(rank, base.local(rank))
                self._happened("restored", f"rank {rank} holds what the seat held")
                return
            except (UserError, ChangeFailed, Stuck, Gone, TimeoutError) as error:
                self._happened("recovery", f"rank {rank} has not come back: {error}")
                await asyncio.sleep(_AGAIN)

    async def _start_balancing(self) -> None:
        """Watch the loads from now on, and act on them where that is wanted."""
        self._recording = recording_of(self._plan, self._happened)
        self._balancer = await balancer_of(self._orders, self.roster.seats, self._events, self._recording)
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
            if self._recording is not None and self.life.state == "stopping":
                try:
                    await asyncio.wait_for(self._balancer.look(), DEADLINES.answer)
                except (TimeoutError, Gone) as error:
                    log.warning("the newest steps are not in the trace: %s", error)
        return RecordingEnd() if self._recording is None else await self._recording.end()

    async def _unbalanced(self, what: str) -> None:
        """Ranks serve on under the placement that they have."""
        self._happened("balancer", what)
        await self.notice("balancer", f"{what}: loads are no longer balanced")

    async def _end_epoch(self) -> None:
        """Have every survivor leave, with the reason that its requests end with, and the ingresses refuse."""
        reason = self.life.reason
        self._happened("degraded", reason)
        await self._changed()  # first, so that a client whose request ends finds the state degraded
        for seat in self.roster.live:
            tell(seat.port.leave(reason))
        await self._stop_balancing()


async def _introduce(staying: Sequence[Seat], to: Sequence[Seat]) -> None:
    """Have ranks that bring tokens ring these bells."""
    for seat in staying:
        if seat.member.runs_attention:
            await seat.port.meet([other.port for other in to if other is not seat])
