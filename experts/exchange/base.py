"""The Exchange interface: a step's header, dispatch of tokens to experts, combine of their outputs.

`dispatch` itself promises no lockstep; transports built on collectives require every member to call
open_step, dispatch and the handle's combine in the same order. All calls come from the rank's step thread.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from experts.dump import StepMoment
from experts.epoch.agreement import StepHeader, StepWish
from experts.epoch.membership import EpochRecord
from experts.exchange.block import BlockForm
from experts.exchange.control import Control
from experts.exchange.split import SplitPolicy
from experts.exchange.wire import ExpertBatch, Route
from experts.placement import Placement

if TYPE_CHECKING:
    from experts.exchange.links.hub import Hub


Compute = Callable[[int, ExpertBatch], torch.Tensor]  # a layer's experts: what arrived, N rows -> [N, H] float32


@dataclass(slots=True)
class ExchangeCounters:
    """Running totals of one rank's exchange since it was built."""

    steps: int = 0
    layers: int = 0  # MoE layers exchanged
    collectives: int = 0  # inside layers; headers are counted by `steps`
    bytes_sent: int = 0
    dispatch_seconds: float = 0.0
    combine_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ExchangeOrder:
    """What an exchange must know of its rank to take a seat.

    rank: the seat's number
    host: address of this machine that the other ranks reach
    placement: that the rank holds complete
    form: what rows look like
    budget: tokens of a whole step over all ranks
    policy: of the split
    hub: the rank's links, of an exchange that uses them
    """

    rank: int
    host: str
    device: str
    placement: Placement
    form: BlockForm
    budget: int
    policy: SplitPolicy = SplitPolicy()
    hub: "Hub | None" = None


class CombineHandle(Protocol):
    """A combine under way. `wait` returns [T, H] float32, the sum over this token's experts."""

    def wait(self) -> torch.Tensor: ...


class DispatchHandle(Protocol):
    """A dispatch under way: call `wait` once, then `combine` once."""

    def wait(self) -> ExpertBatch:
        """What arrived here, N rows."""

    def combine(self, y: torch.Tensor) -> CombineHandle:
        """Send back y [N, H] float32, one weighted sum per row of the batch that `wait` returned."""


class Meeting(Protocol):
    """This rank's end of a group that no step uses yet."""

    def close(self) -> None:
        """Leave it, which its other members notice."""


class Exchange(ABC):
    """Moves tokens between the members of one epoch after another. Raises RankLost when a member is gone.

    member: this rank's place in the group of `size`, by which a header's tuples are read, as of the newest header
    epoch: as of the newest header
    version: of the placement in the newest header
    lockstep: whether other ranks wait for this one's calls
    control: how the ranks speak beside tokens
    """

    control: Control
    counters: ExchangeCounters
    member: int
    size: int
    epoch: int
    lockstep: bool

    @property
    @abstractmethod
    def version(self) -> int:
        """The placement version of the step under way, or of the last one."""

    @property
    @abstractmethod
    def newest(self) -> int:
        """The newest placement version that this rank ever offered."""

    @abstractmethod
    def offer(self, placement: Placement, switch: Callable[[], None] | None, policy: SplitPolicy | None = None) -> None:
        """This rank holds `placement`, newer than any before, complete: a step may use it once all members do.

        policy: of the split from then on, None = as it is
        switch: called by the step thread at the start of the first such step, before anything routes by it; it leads here
            from the version in use now, so whatever was offered since then and never used is passed over

        Callable from any thread.
        """

    @abstractmethod
    def prepare(self, record: EpochRecord) -> None:
        """Get ready for the next epoch beside the running steps: from the first step on that all members are ready for
        it, steps run in it; a rank that is no member of it has its last header then, which says stop.

        Blocks until all its members have come. An epoch prepared before and not entered is forgotten. Callable from any
        thread; not while a placement is on offer that is not in use.
        """

    @abstractmethod
    def drop_epoch(self, epoch: int) -> None:
        """Forget an epoch that was given up, prepared already or not yet; this rank does not enter it from then on, unless
        it has. Waits for the end of a header under way, in which all may have agreed to go there: then it has.

        Callable from any thread. Raises RankLost where that header does not end.
        """

    @abstractmethod
    def meet(self, record: EpochRecord) -> "Meeting":
        """Build this rank's end of the group of an epoch that follows one that broke; blocks until all members have come.

        `recover` enters it; who does not closes it. Callable from any thread. Raises RankLost.
        """

    @abstractmethod
    def recover(self, meeting: "Meeting", base: int, placement: Placement, policy: SplitPolicy) -> None:
        """Enter the epoch of a meeting, while the step thread waits.

        base: the newest placement version that any member used; this rank holds it, and goes to it first where it is behind
        placement: of the new epoch, with a version that was never offered; what this rank holds of it is what it holds
        under `base`; offers newer than `base` are forgotten

        Closes the meeting where it raises.
        """

    @abstractmethod
    def open_step(self, wish: StepWish) -> StepHeader:
        """Exchange the step's header; blocks until every member has opened the same step."""

    @abstractmethod
    def dispatch(self, layer: int, x: torch.Tensor, route: Route) -> DispatchHandle:
        """Send x [T, H] to the ranks that hold its experts of MoE layer `layer`; T may be 0."""

    def layer(self, layer: int, x: torch.Tensor, route: Route, compute: Compute) -> torch.Tensor:
        """[T, H] float32: dispatch, what `compute` makes of what arrived here, combine."""
        handle = self.dispatch(layer, x, route)
        return handle.combine(compute(layer, handle.wait())).wait()

    @abstractmethod
    def moment(self) -> StepMoment:
        """Where the step thread is, and for whom it waits. Callable from any thread; never blocks."""

    @abstractmethod
    def close(self) -> None:
        """Forget an epoch that was prepared, and abort the one under way (see Control.abort). Callable from any thread."""
