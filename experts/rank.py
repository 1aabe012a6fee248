"""RankSeat: what every rank's process has, whatever its role: slots, doorbell, exchange of the current epoch. No Ray."""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from experts.checkpoint.reader import CheckpointReader
from experts.crew import Crew
from experts.doorbell import Doorbell
from experts.dump import StepMoment
from experts.exchange.base import ExchangeCounters
from experts.exchange.block import BlockForm
from experts.exchange.collective import CollectiveExchange
from experts.exchange.group import build_group, connect_store
from experts.exchange.split import SplitPolicy
from experts.exchange.transport import Group
from experts.layers import ExpertLayers
from experts.loader import load_slots
from experts.loads import StepLoads
from experts.membership import EpochRecord
from experts.migrate import Migration, Move, Staged
from experts.pace import Pace
from experts.placement import IntArray, Placement
from experts.slots import ExpertSlots
from experts.spec import ExpertsSpec
from experts.weights_server import WeightServer

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True, slots=True)
class RankOrder:
    """What a rank is to load. threads: that its step may use at most; budget: tokens of a whole step; holds:
    whether it has slots; secret: of the ranks' connections to each other; policy: of the split; pace: of simulated
    experts."""

    rank: int
    folder: Path
    spec: ExpertsSpec
    placement: Placement
    dtype: torch.dtype
    device: str
    threads: int
    budget: int
    node_host: str
    holds: bool
    secret: str = ""
    policy: SplitPolicy = SplitPolicy()
    pace: Pace | None = None


@dataclass(frozen=True, slots=True)
class RankReport:
    """A rank's running totals. loads: int64 [L, S] tokens per slot, None without slots; version: of the placement in
    the newest step; weights_port: where its slots are served, 0 without; switch_seconds: spent writing slots;
    memory_bytes: of its process, resident."""

    pid: int
    loads: IntArray | None
    exchange: ExchangeCounters
    compute_seconds: float
    version: int = 0
    weights_port: int = 0
    switch_seconds: float = 0.0
    memory_bytes: int = 0


class RankSeat:
    """Loads once, then joins one epoch after another. `join` and `load` block: call them off the event loop,
    `load` in a thread that ends (see `threads`)."""

    def __init__(self, order: RankOrder) -> None:
        self.order = order
        self.bell = Doorbell()
        self.slots: ExpertSlots | None = None
        self.exchange: CollectiveExchange | None = None
        self.layers: ExpertLayers | None = None
        self.migration: Migration | None = None
        self.on_steps: Callable[[], object] = lambda: None  # called by the step thread when `has_steps` becomes true
        self._weights: WeightServer | None = None
        self._crew = Crew(order.threads)
        self._lock = threading.Lock()

    def load(self, progress: Progress) -> None:
        """Fill this rank's slots, if it has any."""
        order = self.order
        torch.set_num_threads(order.threads)
        if not order.holds:
            return
        self.slots = ExpertSlots(order.spec, order.placement.slots_per_rank, order.dtype, order.device)
        reader, held = CheckpointReader(order.folder), order.placement.local(order.rank)
        load_slots(self.slots, held, reader, progress)
        self.migration = Migration(self.slots, held, reader, order.secret)
        self._weights = WeightServer(order.node_host, order.secret, self.migration.lookup)

    def join(self, record: EpochRecord) -> ExpertLayers:
        """Build this rank's end of an epoch's group; blocks until all members have come. Raises RankLost."""
        order, members = self.order, record.membership
        group = self._group_of(record)
        form = BlockForm(order.spec.hidden, order.spec.top_k, order.dtype)
        exchange = CollectiveExchange(
            group, members, order.rank, order.placement, form, order.budget, order.policy
        )  # fmt: skip
        with self._lock:
            self.exchange = exchange
            self.layers = ExpertLayers(
                order.spec, exchange, self.slots, order.dtype, order.device, order.pace, self._crew
            )
            self.layers.loads.on_news = self.on_steps
        return self.layers

    def prepare(self, record: EpochRecord) -> None:
        """Get ready for the next epoch beside the running steps; blocks until all its members have come. Raises RankLost."""
        assert self.exchange is not None, "a rank joins before epochs follow"
        group = self._group_of(record) if record.membership.seats(self.order.rank) else None
        self.exchange.offer_epoch(record.membership, group)

    def drop_epoch(self) -> None:
        """Forget an epoch that not all members are ready for."""
        if self.exchange is not None:
            self.exchange.drop_epoch()

    def stage(self, moves: Sequence[Move], bandwidth: float) -> list[Staged]:
        """Fetch experts beside the running steps; blocks. bandwidth: bytes/s. Failures are told, not raised."""
        assert self.migration is not None, "a rank without slots is asked for no expert"
        return self.migration.stage(moves, bandwidth)

    def offer(self, placement: Placement, policy: SplitPolicy | None = None) -> None:
        """Have a newer placement used from the step on that all members offer it for, with a policy of the split (None:
        as it is). Raises MoveFailed when an expert of it was not staged here."""
        assert self.exchange is not None, "a rank joins before placements change"
        switch = None if self.migration is None else self.migration.prepare(placement, self.order.rank)
        self.exchange.offer(placement, switch, policy)

    def drop_staged(self) -> None:
        """Forget what was fetched and not offered."""
        if self.migration is not None:
            self.migration.drop()

    @property
    def has_steps(self) -> bool:
        """Whether `steps` has something."""
        return self.layers is not None and self.layers.loads.has_news

    def steps(self) -> list[StepLoads]:
        """Loads of the steps that ended since the last call, oldest first."""
        return self.layers.loads.drain() if self.layers is not None else []

    def leave(self) -> None:
        """Drop the epoch's group, which releases peers that wait on this rank."""
        with self._lock:
            if self.exchange is not None:
                self.exchange.close()

    def moment(self) -> StepMoment | None:
        """Where the step thread is; None before this rank is in an epoch."""
        return self.exchange.moment() if self.exchange is not None else None

    def _group_of(self, record: EpochRecord) -> Group:
        order, members = self.order, record.membership
        store = connect_store(record.store_host, record.store_port, record.timeout)
        index = members.index(order.rank)
        return build_group(store, members.epoch, index, members.size, order.device, order.node_host, record.timeout)

    def report(self) -> RankReport:
        """Totals since the current epoch's start."""
        layers, exchange = self.layers, self.exchange
        loads = layers.loads.snapshot().numpy() if layers is not None and self.order.holds else None
        counters = exchange.counters if exchange is not None else ExchangeCounters()
        return RankReport(
            os.getpid(), loads, counters, layers.compute_seconds if layers is not None else 0.0,
            exchange.version if exchange is not None else 0,
            self._weights.port if self._weights is not None else 0,
            self.migration.switch_seconds if self.migration is not None else 0.0, psutil.Process().memory_info().rss,
        )  # fmt: skip
