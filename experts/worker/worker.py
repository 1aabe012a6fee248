"""Worker: one rank's end of the cluster below Ray: its weights, its doorbell, and the epoch that it is in.

An expert rank is a Worker; a rank that brings tokens extends it. Made by its order once its weights are read, so that it
is complete. Calls that block say so; all may come from any thread.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch

from experts.background import watch_thread
from experts.checkpoint.reader import CheckpointReader
from experts.crew import Crew
from experts.dump import StepMoment
from experts.epoch.membership import EpochRecord, Member
from experts.errors import RankLost
from experts.exchange.base import Exchange, ExchangeCounters, ExchangeOrder
from experts.exchange.block import BlockForm
from experts.exchange.control import Ring
from experts.exchange.doorbell import Doorbell
from experts.exchange.links.circle import sizes_of
from experts.exchange.links.hub import Hub
from experts.exchange.registry import exchange_kind
from experts.exchange.split import SplitPolicy
from experts.layers import ExpertLayers
from experts.placement import IntArray, Placement
from experts.slots.loader import load_slots
from experts.slots.loads import StepLoads
from experts.slots.migrate import Migration, Move, Staged
from experts.slots.slots import ExpertSlots
from experts.slots.weights_server import WeightServer
from experts.spec import ExpertsSpec
from experts.threads import in_own_thread
from experts.worker.pause import Pause
from experts.worker.rank_loop import ExpertRankLoop

Progress = Callable[[int, int], None]  # bytes done, bytes in all


class Superseded(Exception):
    """The record of an epoch names another process for this rank's seat."""


class StepBody(Protocol):
    """What a rank's step thread runs. lost: why it ended, empty when it was asked to."""

    lost: str

    def run(self) -> None:
        """Run steps until the group ends or breaks; it is closed by then."""

    def fail(self, reason: str) -> None:
        """End all that waits for steps, with a reason."""

    def stop(self) -> None:
        """Ask the whole group to end its loops after the next step."""

    def nudge(self) -> None:
        """Have the group run a step, be it an empty one."""

    def stats(self) -> Any:
        """A snapshot of what it counts beside loads, None where there is nothing."""


@dataclass(frozen=True, kw_only=True)
class WorkerOrder:
    """What a rank is to load.

    seat: who it is
    spec, folder: the routed experts and the checkpoint that has them
    placement: that it begins with
    threads: that its step may use at most
    budget: tokens of a whole step
    secret: of the ranks' connections to each other
    policy: of the split
    exchange: its kind, by name
    """

    seat: Member
    folder: Path
    spec: ExpertsSpec
    placement: Placement
    dtype: torch.dtype
    device: str
    threads: int
    budget: int
    secret: str = ""
    policy: SplitPolicy = SplitPolicy()
    exchange: str = "gloo"

    async def load(self, progress: Progress) -> "Worker":
        """Read what the seat holds, in a thread."""
        return Worker(self, await asyncio.to_thread(in_own_thread, lambda: self.read_experts(progress)))

    def read_experts(self, progress: Progress) -> "Held | None":
        """The seat's experts, None for one without; blocks. To be called in a thread that ends (see `threads`)."""
        torch.set_num_threads(self.threads)
        return Held.read(self, self.new_slots(), progress) if self.seat.holds_experts else None

    def new_slots(self) -> ExpertSlots:
        """Room for the seat's experts."""
        return ExpertSlots(self.spec, self.placement.slots_per_rank, self.dtype, self.device)


@dataclass(frozen=True, slots=True)
class Held:
    """The experts of a rank that has some: in slots, ready to be moved, and served to its peers."""

    slots: ExpertSlots
    migration: Migration
    server: WeightServer

    @classmethod
    def read(cls, order: WorkerOrder, slots: ExpertSlots, progress: Progress) -> "Held":
        """Fill `slots` with what the placement has on the seat; blocks."""
        reader, held = CheckpointReader(order.folder), order.placement.local(order.seat.rank)
        load_slots(slots, held, reader, progress)
        migration = Migration(slots, held, reader, order.secret)
        return cls(slots, migration, WeightServer(order.seat.node_ip, order.secret, migration.lookup))


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker's part of an epoch, and of those that follow it without a pause."""

    exchange: Exchange
    layers: ExpertLayers
    body: StepBody


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a rank stands whose step thread waits after its epoch broke.

    epoch: the one that broke here
    used: placement version of its newest step
    newest: the newest version that it ever offered
    """

    epoch: int
    used: int
    newest: int


@dataclass(frozen=True, slots=True)
class RankReport:
    """A rank's running totals.

    loads: int64 [L, S] tokens per slot, None without slots
    version: of the placement in the newest step
    switch_seconds: spent writing slots
    memory_bytes: of its process, resident
    engine: what its step loop counts beside loads
    """

    pid: int
    loads: IntArray | None = None
    exchange: ExchangeCounters = field(default_factory=ExchangeCounters)
    compute_seconds: float = 0.0
    version: int = 0
    switch_seconds: float = 0.0
    memory_bytes: int = 0
    engine: Any = None


class Worker:
    """See the module."""

    link_port = 0  # where ingresses connect, 0 where none may

    def __init__(self, order: WorkerOrder, held: Held | None) -> None:
        """held: the seat's experts, None for a seat without."""
        self.order, self.held = order, held
        self.bell = Doorbell()
        self.on_steps: Callable[[], object] = lambda: None  # called by the step thread when `has_steps` becomes true
        self.joined: Joined | None = None  # before it is in an epoch
        self._crew = Crew(order.threads)
        self._pause = Pause(lambda lost: None)
        self._entering = threading.Lock()  # held while an epoch is entered after a loss, or given up
        self._given_up = 0
        self._thread: threading.Thread | None = None
        form, budget, seat = self._form, order.budget, order.seat
        self._hub: Hub | None = None
        if exchange_kind(order.exchange).links:
            sizes = sizes_of(form, order.placement, budget)
            self._hub = Hub(seat.node_ip, order.secret, seat.rank, seat.incarnation, sizes)

    @property
    def exchange_port(self) -> int:
        """Where peers call for the links that tokens travel on, 0 where there are none."""
        return self._hub.port if self._hub is not None else 0

    @property
    def _form(self) -> BlockForm:
        spec = self.order.spec
        return BlockForm(spec.hidden, spec.top_k, self.order.dtype)

    @property
    def weights_port(self) -> int:
        """Where peers fetch experts, 0 without any."""
        return self.held.server.port if self.held is not None else 0

    def join(
        self,
        record: EpochRecord,
        ring: Ring,
        ended: Callable[[str], None],
        broke: Callable[[RankLost], None] | None = None,
    ) -> None:
        """Take the seat in an epoch and run its steps; blocks until all members have come. Raises RankLost.

        ring: asks every rank of the group, this one included, for a step; never blocks
        ended: gets, from the step thread, why the steps ended, empty when they were asked to
        broke: gets, from it, what broke them; it waits then until `recover` or `leave`. None: they end
        """
        self._check(record)
        if broke is not None:
            self._pause = Pause(broke)
        order, held = self.order, self.held
        wanted = ExchangeOrder(
            order.seat.rank, order.seat.node_ip, order.device, order.placement, self._form, order.budget, order.policy,
            self._hub,
        )  # fmt: skip
        exchange = exchange_kind(order.exchange).join(wanted, record, self.bell, ring)
        slots = held.slots if held is not None else None
        layers = ExpertLayers(order.spec, exchange, slots, order.dtype, order.device, self._crew)
        layers.loads.on_news = self.on_steps
        body = self.body(exchange, layers, record.planned, None if broke is None else self._pause)
        self.joined = Joined(exchange, layers, body)

        def broken(what: str) -> None:  # a body deals with its exceptions itself: this is the worst case
            exchange.close()
            ended(what)

        self._thread = watch_thread("step-loop", lambda: self._run(body, ended), broken, returns=True)

    def body(self, exchange: Exchange, layers: ExpertLayers, planned: bool, pause: Pause | None) -> StepBody:
        """What the step thread is to run.

        planned: the others come to the first step by themselves
        pause: where it waits once its epoch broke
        """
        return ExpertRankLoop(layers, exchange, awaited=planned, pause=pause)

    def prepare(self, record: EpochRecord) -> None:
        """Get ready for the next epoch beside the running steps; blocks until all its members have come. Raises RankLost."""
        self._check(record)
        self._in_epoch.exchange.prepare(record)

    def drop_epoch(self, epoch: int) -> int:
        """Forget an epoch that was given up: see Exchange.drop_epoch; the epoch that this rank is in. Blocks."""
        if self.joined is not None:
            self.joined.exchange.drop_epoch(epoch)
        return self.epoch

    def suspend(self, given_up: int, seconds: float) -> Standing:
        """Break the epoch, if it has not broken, and wait until the step thread waits; blocks at most `seconds`.

        given_up: no epoch up to this number is entered from now on, though its group may be met meanwhile

        Raises RankLost where the step thread does not wait.
        """
        exchange = self._in_epoch.exchange
        with self._entering:
            self._given_up = max(self._given_up, given_up)
            exchange.close()
        if not self._pause.held(seconds):
            raise RankLost(exchange.epoch, -1, f"the step thread has ended, or not stopped within {seconds:g} s")
        return Standing(exchange.epoch, exchange.version, exchange.newest)

    def recover(self, record: EpochRecord, base: int, placement: Placement, policy: SplitPolicy) -> None:
        """Enter an epoch after `suspend` (see Exchange.recover) and have the broken step run again; blocks until all members
        have come. Raises RankLost; then the step thread goes on waiting."""
        self._check(record)
        joined, epoch = self._in_epoch, record.membership.epoch
        meeting = joined.exchange.meet(record)
        with self._entering:
            if epoch <= self._given_up:  # all came too late, or a member was lost since
                meeting.close()
                raise RankLost(epoch, -1, "the epoch was given up while its group was built")
            joined.layers.abandon_step()
            joined.exchange.recover(meeting, base, placement, policy)
            self._pause.release()

    def stage(self, moves: Sequence[Move], bandwidth: float) -> list[Staged]:
        """Fetch experts beside the running steps; blocks. bandwidth: bytes/s. Failures are in the answer, not raised."""
        assert self.held is not None, "a rank without slots is asked for no expert"
        return self.held.migration.stage(moves, bandwidth)

    def offer(self, placement: Placement, policy: SplitPolicy | None = None) -> None:
        """Have a newer placement used from the step on that all members offer it for, with a policy of the split (None:
        as it is). Raises MoveFailed when an expert of it was not staged here."""
        exchange = self._in_epoch.exchange
        switch = None if self.held is None else self.held.migration.prepare(placement, self.order.seat.rank)
        exchange.offer(placement, switch, policy)

    def drop_staged(self) -> None:
        """Forget what was fetched and not offered."""
        if self.held is not None:
            self.held.migration.drop()

    @property
    def has_steps(self) -> bool:
        """Whether `steps` has something."""
        return self.joined is not None and self.joined.layers.loads.has_news

    def steps(self) -> list[StepLoads]:
        """Loads of the steps that ended since the last call, oldest first."""
        return self.joined.layers.loads.drain() if self.joined is not None else []

    def leave(self, reason: str) -> None:
        """Drop the epoch's group, which releases peers that wait on this rank; what waits for steps ends with `reason`."""
        self._pause.end()
        if self.joined is not None:
            self.joined.body.fail(reason)
            self.joined.exchange.close()

    def close(self) -> None:
        """Serve no expert to peers any more, and end all links: the last call."""
        if self.held is not None:
            self.held.server.close()
        if self._hub is not None:
            self._hub.close()

    def end(self, seconds: float = 10.0) -> bool:
        """End the group's loops after the next step; blocks. Whether the step thread has ended within `seconds`."""
        if self.joined is not None:
            self.joined.body.stop()
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    @property
    def epoch(self) -> int:
        """Of the newest step, 0 before one."""
        return self.joined.exchange.epoch if self.joined is not None else 0

    @property
    def version(self) -> int:
        """Placement version of the newest step, 0 before one."""
        return self.joined.exchange.version if self.joined is not None else 0

    def moment(self) -> StepMoment | None:
        """Where the step thread is; None before this rank is in an epoch."""
        return self.joined.exchange.moment() if self.joined is not None else None

    def report(self) -> RankReport:
        """Totals since it joined."""
        memory = psutil.Process().memory_info().rss
        if self.joined is None:
            return RankReport(os.getpid(), memory_bytes=memory)
        layers, exchange = self.joined.layers, self.joined.exchange
        return RankReport(
            pid=os.getpid(),
            loads=layers.loads.snapshot().numpy() if self.held is not None else None,
            exchange=exchange.counters,
            compute_seconds=layers.compute_seconds,
            version=exchange.version,
            switch_seconds=self.held.migration.switch_seconds if self.held is not None else 0.0,
            memory_bytes=memory,
            engine=self.joined.body.stats(),
        )

    @property
    def _in_epoch(self) -> Joined:
        assert self.joined is not None, "a rank joins before anything follows"
        return self.joined

    def _check(self, record: EpochRecord) -> None:
        """Raise Superseded where another process has the seat by now."""
        seat = self.order.seat
        for member in record.membership.members:
            if member.rank == seat.rank and member.incarnation != seat.incarnation:
                raise Superseded(
                    f"epoch {record.membership.epoch} has incarnation {member.incarnation} of rank {seat.rank}, "
                    f"this is {seat.incarnation}"
                )

    def _run(self, body: StepBody, ended: Callable[[str], None]) -> None:
        try:
            body.run()
        finally:
            self._pause.end()
        ended(body.lost)
