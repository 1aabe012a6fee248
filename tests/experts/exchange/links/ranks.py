"""Ranks whose exchange is links: each has a hub, steps through epochs, and checks what comes back.

An expert's output is its number + 1 times what it gets, so that what is right is one line; each rank with experts has all.
"""

import threading

import numpy as np
import torch

from experts.epoch.agreement import StepWish
from experts.epoch.membership import HERE, EpochRecord, Member, Membership, Role
from experts.errors import RankLost
from experts.exchange.base import ExchangeOrder
from experts.exchange.block import BlockForm
from experts.exchange.doorbell import Doorbell
from experts.exchange.links.circle import sizes_of
from experts.exchange.links.control import LinkControl
from experts.exchange.links.exchange import LinksExchange
from experts.exchange.links.group import LinkGroup
from experts.exchange.links.hub import Hub
from experts.exchange.split import SplitPolicy
from experts.exchange.wire import ExpertBatch, Route
from experts.placement import Placement
from tests.experts.exchange.groups import random_inputs
from tests.patience import PATIENCE

LAYERS, EXPERTS, RANKS = 2, 4, 4
FORM = BlockForm(hidden=6, top_k=2, dtype=torch.float32)
BUDGET = 1 << 16


def placement(members: Membership) -> Placement:
    """All experts on each member that holds any; its version is the epoch."""
    row = np.full(RANKS * EXPERTS, -1)
    for member in members.members:
        if member.holds_experts:
            row[member.rank * EXPERTS : (member.rank + 1) * EXPERTS] = np.arange(EXPERTS)
    return Placement(members.epoch, RANKS, EXPERTS, np.tile(row, (LAYERS, 1)))


def compute(layer: int, batch: ExpertBatch) -> torch.Tensor:
    """A layer's experts on what arrived."""
    return batch.x * factors(batch.slots, batch.weights)


def factors(experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """[N, 1] float32: what all experts of a row do to it."""
    return ((experts + 1) * weights).sum(dim=1, keepdim=True)


class Rank:
    """One process's part, whose calls are made by whoever has it.

    own: tokens that it brings to each step
    together: sources split together
    """

    def __init__(self, rank: int, role: Role, incarnation: int = 0, own: int = 3, together: bool = False) -> None:
        shape = Placement.first(LAYERS, EXPERTS, RANKS, EXPERTS)
        self.hub = Hub(HERE, "secret", rank, incarnation, sizes_of(FORM, shape, BUDGET))
        self.seat = Member(rank, role, incarnation, exchange_port=self.hub.port)
        self.own = own if self.seat.runs_attention else 0
        self.exchange: LinksExchange | None = None
        self.results: list[torch.Tensor] = []  # of all layers, the first first
        self._lock = threading.Lock()
        self._given_up = -1
        self._together = 0 if together else 1 << 30

    def enter(self, members: Membership) -> None:
        """The first epoch, or the one after one that ended. Raises RankLost."""
        self.take(members, self.meet(members))

    def meet(self, members: Membership) -> LinkGroup:
        """Blocks until all have come. Raises RankLost."""
        return LinkGroup.meet(self.hub, self.seat.rank, record_of(members))

    def take(self, members: Membership, group: LinkGroup, held: Placement | None = None) -> None:
        """Step in a group from now on. held: of an epoch that follows without a break, and that this rank joins; None: it is the
        first one of all, or follows a break."""
        with self._lock:
            if members.epoch <= self._given_up:
                group.close()
                raise RankLost(members.epoch, -1, "the epoch was given up")
            if self.exchange is not None and held is None:
                self.exchange.recover(group, self.exchange.version, placement(members), SplitPolicy())
            else:
                order = ExchangeOrder(
                    self.seat.rank, HERE, "cpu", held or placement(members), FORM, BUDGET, hub=self.hub
                )
                self.exchange = LinksExchange(order, self.hub, group, LinkControl(Doorbell()), self._together)

    def step(self, number: int, stop: bool = False) -> bool:
        """One step; `number` decides its tokens. Whether it was the last. Raises RankLost."""
        exchange = self.exchange
        assert exchange is not None
        header = exchange.open_step(StepWish(decode=self.own, stop=stop))
        for layer in range(LAYERS if header.busy and not header.stop else 0):
            x, ids, weights = random_inputs(self.own, FORM, EXPERTS, 1000 * number + 10 * layer + self.seat.rank)
            sums = exchange.layer(layer, x, Route(ids, weights), compute)
            assert torch.allclose(sums, x * factors(ids, weights), atol=1e-5), f"rank {self.seat.rank}, step {number}"
            self.results.append(sums)
        return header.stop

    def steps(self, count: int) -> None:
        """Raises RankLost."""
        for number in range(count):
            self.step(number)

    def leave(self, given_up: int = -1) -> None:
        """End the epoch here, if there is one, and take none up to `given_up`. Any thread."""
        with self._lock:
            self._given_up = max(self._given_up, given_up)
        if self.exchange is not None:
            self.exchange.close()

    def close(self) -> None:
        self.leave()
        self.hub.close()


def record_of(members: Membership) -> EpochRecord:
    """No wait ends by itself before a test has failed."""
    return EpochRecord(members, "", 0, timeout=10 * PATIENCE)
