"""LocalExchange: one process holds all experts; nothing travels and nothing is copied."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from experts.dump import StepMoment
from experts.epoch.agreement import Row, StepHeader, StepWish, agree
from experts.epoch.membership import EpochRecord
from experts.errors import RankLost
from experts.exchange.base import CombineHandle, DispatchHandle, Exchange, ExchangeCounters, ExchangeOrder, Meeting
from experts.exchange.control import OwnControl, Ring
from experts.exchange.doorbell import Doorbell
from experts.exchange.split import SplitPolicy, SplitTable
from experts.exchange.wire import ExpertBatch, Route
from experts.placement import Placement


@dataclass(slots=True)
class LocalCombine:
    """Has its sums at once."""

    sums: torch.Tensor

    def wait(self) -> torch.Tensor:
        return self.sums


@dataclass(slots=True)
class LocalDispatch:
    """Has its batch at once."""

    batch: ExpertBatch

    def wait(self) -> ExpertBatch:
        return self.batch

    def combine(self, y: torch.Tensor) -> CombineHandle:
        return LocalCombine(y)


class LocalExchange(Exchange):
    """The exchange of a group of one.

    budget: tokens of a whole step, decode included
    bell: None: one of its own
    """

    def __init__(
        self, placement: Placement, budget: int, device: torch.device | str = "cpu", epoch: int = 0,
        bell: Doorbell | None = None,
    ) -> None:  # fmt: skip
        assert placement.ranks == 1, f"one process holds all slots, the placement has {placement.ranks} ranks"
        self.control = OwnControl(bell or Doorbell())
        self.counters = ExchangeCounters()
        self.member, self.size = 0, 1
        self.lockstep = False
        self._budget = budget
        self.epoch = epoch
        self._device = device
        self._layer = -1
        self._step = -1
        self._lock = threading.Lock()  # of what other threads leave for the step thread
        self._offered: tuple[Placement, Callable[[], None] | None] | None = None
        self._next = epoch
        self._use(placement)

    @classmethod
    def join(cls, order: ExchangeOrder, record: EpochRecord, bell: Doorbell, ring: Ring) -> "LocalExchange":
        """The only member's end of an epoch."""
        assert record.membership.size == 1, f"one process has one rank, the epoch has {record.membership.size}"
        return cls(order.placement, order.budget, order.device, record.membership.epoch, bell)

    @property
    def version(self) -> int:
        return self._version

    @property
    def newest(self) -> int:
        return self._version

    def offer(self, placement: Placement, switch: Callable[[], None] | None, policy: SplitPolicy | None = None) -> None:
        with self._lock:
            self._offered = placement, switch

    def prepare(self, record: EpochRecord) -> None:
        with self._lock:
            self._next = record.membership.epoch

    def drop_epoch(self, epoch: int) -> None:
        with self._lock:
            self._next = self.epoch

    def meet(self, record: EpochRecord) -> Meeting:
        raise RankLost(self.epoch, self._step, "the only rank has no peers that it could go on with")

    def recover(self, meeting: Meeting, base: int, placement: Placement, policy: SplitPolicy) -> None:
        raise AssertionError("nobody meets here")

    def open_step(self, wish: StepWish) -> StepHeader:
        with self._lock:
            offered, self._offered = self._offered, None
            if self._next != self.epoch:
                self.epoch, self._step = self._next, -1
        step, newest = self._step + 1, self._version if offered is None else offered[0].version
        row = Row(self.epoch, step, newest, wish.decode, wish.prefill, int(wish.stop), self.epoch)
        answer = agree(self.control.gather(row), self.epoch, step, self._budget)
        assert isinstance(answer, StepHeader), "one member is at its own step, and ready for its own epoch"
        if offered is not None:
            placement, switch = offered
            if switch is not None:
                switch()
            self._use(placement)
        self._step, self._layer = step, -1
        self.counters.steps += 1
        return answer

    def moment(self) -> StepMoment:
        return StepMoment(self.epoch, self._step, self._layer)

    def dispatch(self, layer: int, x: torch.Tensor, route: Route) -> DispatchHandle:
        started = time.perf_counter()
        self._layer = layer
        lookup = self._lookup[layer]
        slots = route.ids if lookup is None else lookup[route.ids.long()]
        self.counters.layers += 1
        self.counters.dispatch_seconds += time.perf_counter() - started
        return LocalDispatch(ExpertBatch(x, slots, route.weights))

    def close(self) -> None:
        self.control.abort()

    def _use(self, placement: Placement) -> None:
        self._version = placement.version
        self._lookup = [_slot_lookup(placement, layer, self._device) for layer in range(placement.layers)]


def _slot_lookup(placement: Placement, layer: int, device: torch.device | str) -> torch.Tensor | None:
    """[E+1] int32 first slot of each expert; index -1, the last entry, is "none". None if slot e holds expert e."""
    lookup = torch.from_numpy(SplitTable.of(placement, layer).lookup).roll(-1)
    same = bool((lookup[:-1] == torch.arange(len(lookup) - 1)).all())
    return None if same else lookup.to(device)
