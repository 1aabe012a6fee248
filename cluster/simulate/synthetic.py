"""Synthetic ranks in place of a model's, in a simulation over real actors: made tokens, and experts that take their time."""

import time
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from cluster.control.orders import Orders
from cluster.simulate.pace import Pace
from cluster.simulate.source import SourceOrder, SourceProcess
from experts.exchange.split import SplitPolicy
from experts.exchange.wire import ExpertBatch
from experts.slots.slots import ExpertSlots
from experts.worker.host import WorkerProcess
from experts.worker.worker import WorkerOrder


@dataclass(frozen=True, eq=False)
class SyntheticOrders(Orders):
    """tokens: of a step
    loads: int64 [T, L, E] that the gate follows
    pace: of the experts
    speeds: relative, of each rank, empty = all alike
    """

    tokens: int
    loads: npt.NDArray[np.int64]
    pace: Pace
    speeds: tuple[float, ...] = ()

    @property
    def least_pairs(self) -> int:
        return 1

    @property
    def policy(self) -> SplitPolicy:
        return SplitPolicy(self.pace.floor)

    def attention(self, common: WorkerOrder) -> WorkerOrder:
        return SourceOrder(**vars(common), tokens=self.tokens, loads=self.loads)

    def experts(self, common: WorkerOrder) -> WorkerOrder:
        rank, seconds = common.seat.rank, self.pace.seconds
        pace = replace(self.pace, seconds=seconds / self.speeds[rank]) if self.speeds else self.pace
        return PacedOrder(**vars(common), pace=pace)

    def process(self, order: WorkerOrder) -> type[WorkerProcess]:
        return SourceProcess if isinstance(order, SourceOrder) else WorkerProcess


@dataclass(frozen=True, kw_only=True)
class PacedOrder(WorkerOrder):
    """Of a rank whose experts take their time."""

    pace: Pace

    def new_slots(self) -> ExpertSlots:
        return PacedSlots(self)


class PacedSlots(ExpertSlots):
    """Slots that compute for real, and then wait until the pace's time has passed."""

    def __init__(self, order: PacedOrder) -> None:
        super().__init__(order.spec, order.placement.slots_per_rank, order.dtype, order.device)
        self._pace = order.pace

    def forward(self, layer: int, batch: ExpertBatch) -> torch.Tensor:
        started = time.perf_counter()
        y = super().forward(layer, batch)
        time.sleep(max(self._pace.of(batch.slots) - (time.perf_counter() - started), 0))
        return y
