"""Circle: the links of one epoch's members, and what travels on them. The interface; native (C) and plain (Python) are two
forms of it, with the same frames, so that they understand each other.

Shape letters: T own tokens, N rows that arrived here, H hidden, K top-k, M members.
"""

import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from experts.epoch.agreement import Row
from experts.exchange.block import BlockForm
from experts.exchange.links.frame import Frame, Outcome
from experts.exchange.routing import Tables
from experts.exchange.wire import ExpertBatch
from experts.placement import Placement


class Trouble(Exception):
    """A call that did not end well: who (a member's place, -1 = nobody), the errno (-1 = it closed), and what came."""

    def __init__(self, outcome: Outcome, member: int = -1, error: int = 0, found: Frame | None = None) -> None:
        super().__init__(outcome.name)
        self.outcome, self.member, self.error, self.found = outcome, member, error, found


@dataclass(frozen=True, slots=True)
class Rows:
    """A source's tokens of a layer.

    x: [T, H], contiguous
    ids: [T, K] int32 logical experts, -1 = none, contiguous
    weights: [T, K] float32, contiguous
    """

    x: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor


class Peer(Protocol):
    """One link, which circles of one epoch after another use."""

    def usable(self, epoch: int) -> bool:
        """Whether it can carry frames of an epoch: reads what is left of those before. Not while a circle waits on it."""

    def died(self) -> None:
        """The other end's process is dead, though the connection may not have ended yet. Any thread."""

    def close(self) -> None:
        """End the connection. No circle that has this link is called from then on."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What rows on links look like, equal on all of them.

    element: bytes of an activation, 4 = float32, 2 = bfloat16
    experts: logical ones of a layer
    budget: tokens of a whole step
    """

    hidden: int
    top_k: int
    element: int
    slots_per_rank: int
    experts: int
    budget: int

    @property
    def dtype(self) -> torch.dtype:
        """Of activations."""
        return torch.float32 if self.element == 4 else torch.bfloat16

    @property
    def x_bytes(self) -> int:
        """Bytes of one token's activations, or sums on their way back."""
        return self.hidden * self.element

    @property
    def row_bytes(self) -> int:
        """Bytes of one token on its way to experts."""
        return 8 * self.top_k + self.x_bytes

    @property
    def most_bytes(self) -> int:
        """Of the largest body."""
        return self.budget * self.row_bytes


def sizes_of(form: BlockForm, placement: Placement, budget: int) -> Sizes:
    """Of a model's rows."""
    return Sizes(form.hidden, form.top_k, form.dtype.itemsize, placement.slots_per_rank, placement.experts, budget)


class Circle(ABC):
    """Calls that raise Trouble are of the step thread, or of the one that meets; `wake` and `abort` are for any.

    What `dispatch` routed is what `collect` and `sum` of the same layer go by.
    """

    @abstractmethod
    def meet(self, whom: Sequence[int], say: Sequence[int], until: int) -> None:
        """Wait until the peers `whom` are in `meet`, too. Raises Trouble; then a later call waits for the same ones.

        say: those of them that were not told yet
        until: when waiting ends, on the monotonic clock, in ns
        """

    @abstractmethod
    def header(self, row: Row, leader: int | None) -> list[Row]:
        """Everyone's row, in the order of the members. Raises Trouble.

        leader: through whom rows go to all, for members that all come by themselves; None: each to each, which wakes those
        that are in `idle`
        """

    @abstractmethod
    def idle(self, until: int | None) -> bool:
        """Sleep until a peer has opened a step, or is gone, or the circle was ended (True), or was woken (False)."""

    @abstractmethod
    def step(self, step: int, version: int, room: Sequence[int], turn: int | None) -> None:
        """What the calls of the next layers are of.

        version: of the placement
        room: most tokens of each member, 0 = it is no source
        turn: of the split, None: every expert goes to its home slot
        """

    @abstractmethod
    def dispatch(self, layer: int, rows: Rows, tables: Tables, slots: torch.Tensor | None) -> None:
        """Send each member with experts the rows that are for it. Raises Trouble.

        slots: [T, K] int32 over all ranks, where the split was made already
        """

    @abstractmethod
    def collect(self, layer: int, own: Rows | None) -> ExpertBatch:
        """The rows for this member, in the order of members; valid until the next call. Raises Trouble.

        own: this member's tokens, which `dispatch` has routed
        """

    @abstractmethod
    def give_back(self, layer: int, y: torch.Tensor) -> None:
        """Send each source the sums of its rows. Raises Trouble.

        y: [N, H] float32, in the order that the last `collect` gave
        """

    @abstractmethod
    def sum(self, layer: int, own: torch.Tensor | None) -> torch.Tensor:
        """[T, H] float32: what comes back, added up in the order of members. Raises Trouble.

        own: [n, H] float32 of this member's own experts
        """

    @abstractmethod
    def ask(self, layer: int, rows: Rows, tables: Tables, slots: torch.Tensor | None) -> torch.Tensor:
        """`dispatch` and `sum` of a member without experts."""

    @abstractmethod
    def ids(self, layer: int, mine: torch.Tensor) -> dict[int, torch.Tensor]:
        """Every source's top-k ids [T, K] int16, by member in rising order. Raises Trouble."""

    @property
    @abstractmethod
    def bytes_sent(self) -> int:
        """By calls up to now, heads included."""

    @abstractmethod
    def missing(self) -> tuple[int, ...]:
        """Members that the call under way waits for. Any thread."""

    @abstractmethod
    def wake(self) -> None:
        """End `idle`."""

    @abstractmethod
    def abort(self) -> None:
        """End this member's part of the epoch, now and for calls to come. After calls that all ended well peers are said that
        nothing more comes from here, else that the epoch is broken."""


class Lines(Protocol):
    """Makes links and circles of one form."""

    def peer(self, connection: socket.socket, incarnation: int, theirs: int, most_bytes: int) -> Peer:
        """A link over a connection whose hello is done.

        incarnation, theirs: of both ends
        most_bytes: of a body that is taken
        """

    def circle(
        self, epoch: int, peers: Sequence[Peer | None], me: int, ranks: Sequence[int], sizes: Sizes, patience: float
    ) -> Circle:
        """peers: by member, None at `me`, and at members that this circle does without
        ranks: of members that hold experts, -1 for others
        patience: s, of every wait for peers but `meet` and `idle`
        """
