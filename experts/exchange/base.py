"""The Exchange interface: a step's header, dispatch of tokens to experts, combine of their outputs.

`dispatch` itself promises no lockstep; transports built on collectives require every member to call
open_step, dispatch and the handle's combine in the same order. All calls come from the rank's step thread.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch

from experts.dump import StepMoment
from experts.exchange.wire import ExpertBatch, Route, StepHeader, StepWish


@dataclass(slots=True)
class ExchangeCounters:
    """Running totals of one rank's exchange since it was built."""

    steps: int = 0
    layers: int = 0  # MoE layers exchanged
    collectives: int = 0  # inside layers; headers are counted by `steps`
    bytes_sent: int = 0
    dispatch_seconds: float = 0.0
    combine_seconds: float = 0.0


class CombineHandle(Protocol):
    """A combine under way. `wait` returns [T, H] float32, the sum over this token's experts."""

    def wait(self) -> torch.Tensor: ...


class DispatchHandle(Protocol):
    """A dispatch under way: call `wait` once, then `combine` once."""

    def wait(self) -> ExpertBatch:
        """What arrived here, N rows."""

    def combine(self, y: torch.Tensor) -> CombineHandle:
        """Send back y [N, H] float32, one weighted sum per row of the batch that `wait` returned."""


class Exchange(ABC):
    """Moves tokens between the members of one epoch. Raises RankLost when a member is gone.

    member: this rank's place in the group of `size`, by which a header's tuples are read, and epoch: both as of the
    newest header; lockstep: whether other ranks wait for this one's calls.
    """

    counters: ExchangeCounters
    member: int
    size: int
    epoch: int
    lockstep: bool

    @abstractmethod
    def open_step(self, wish: StepWish) -> StepHeader:
        """Exchange the step's header; blocks until every member has opened the same step."""

    @abstractmethod
    def dispatch(self, layer: int, x: torch.Tensor, route: Route) -> DispatchHandle:
        """Send x [T, H] to the ranks that hold its experts of MoE layer `layer`; T may be 0."""

    @abstractmethod
    def moment(self) -> StepMoment:
        """Where the step thread is, and for whom it waits. Callable from any thread; never blocks."""

    @abstractmethod
    def close(self) -> None:
        """Drop the group at once, which releases peers that wait on this rank. Callable from any thread."""
