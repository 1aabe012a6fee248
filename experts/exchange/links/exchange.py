"""LinksExchange: dispatch and combine over links, one call into C each. Its steps are in lockstep, no group is built.

A source splits its own tokens, or those of all sources after their ids have travelled between the sources (see
`together`). Shape letters: T own tokens, N rows that arrived, H hidden, K top-k.
"""

import time

import torch

from experts.epoch.agreement import StepHeader, StepWish
from experts.epoch.membership import EpochRecord
from experts.exchange.base import DispatchHandle, ExchangeCounters, ExchangeOrder, Meeting
from experts.exchange.control import Ring
from experts.exchange.doorbell import Doorbell
from experts.exchange.group import BUILD_DEADLINE
from experts.exchange.links.circle import Moment, Rows
from experts.exchange.links.control import LinkControl
from experts.exchange.links.group import LinkGroup
from experts.exchange.links.hub import Hub, Key
from experts.exchange.stepped import SteppedExchange
from experts.exchange.wire import ExpertBatch, Route

# Tokens of a step from which one split of all sources' tokens is worth a message of ids between the sources: it costs
# about 30 us a layer, and a split of own tokens alone leaves the slowest rank a tenth more work.
TOGETHER = 64


class LinksExchange(SteppedExchange[LinkGroup]):
    """See the module."""

    def __init__(
        self, order: ExchangeOrder, hub: Hub, group: LinkGroup, control: LinkControl, together: int = TOGETHER
    ) -> None:
        """group: of the first epoch
        together: tokens of a step from which sources split together
        """
        self._hub, self._together = hub, together
        self._turn: int | None = None
        self._all = False
        no_x = torch.empty((0, order.form.hidden), dtype=order.form.dtype)
        no_slots = torch.empty((0, order.form.top_k), dtype=torch.int32)
        self.no_sums = torch.empty((0, order.form.hidden), dtype=torch.float32)
        self.nothing = ExpertBatch(no_x, no_slots, no_slots.float())  # arrives at a rank without experts
        super().__init__(order, group, control, ExchangeCounters())

    @classmethod
    def join(cls, order: ExchangeOrder, record: EpochRecord, bell: Doorbell, ring: Ring) -> "LinksExchange":
        """Meet the members of an epoch; blocks until all have come. Raises RankLost."""
        assert order.hub is not None, "a worker whose exchange is links has a hub"
        group = _meet(order, order.hub, record, frozenset())
        return cls(order, order.hub, group, LinkControl(bell, ring))

    def open_step(self, wish: StepWish) -> StepHeader:
        header = super().open_step(wish)
        tokens, top_k = sum(header.tokens), self._order.form.top_k
        # Below it reading weights is the cost, and sources that can't see each other read no copy twice.
        few = tokens * top_k < self._tables.policy.floor * self._order.placement.experts
        together = tokens >= self._together
        self._turn = None if few and len(self._group.sources) > 1 else 0 if together else self.member
        self._all = self._turn is not None and together and sum(1 for count in header.tokens if count) > 1
        return header

    def dispatch(self, layer: int, x: torch.Tensor, route: Route) -> DispatchHandle:
        started = time.perf_counter()
        group, header = self._group, self._header
        self._layer = layer
        mine = header.tokens[self.member]
        assert x.shape[0] <= mine, f"{x.shape[0]} tokens, granted {mine}"
        at, rows = group.at(layer, header.version), None
        if mine:
            rows = Rows(x.contiguous(), route.ids.to(torch.int32).contiguous(), route.weights.contiguous())
            slots = self._split_of_all(at, rows.ids) if self._all else None
            with group.doing("dispatch"):
                group.circle.dispatch(at, rows, self._tables, self._turn, slots)
        self.counters.layers += 1
        self.counters.dispatch_seconds += time.perf_counter() - started
        return _Dispatch(self, group, at, rows)

    def receive(self, at: Moment, rows: Rows | None) -> ExpertBatch:
        """What arrived here."""
        group = self._group
        with group.doing("dispatch"):
            return group.circle.collect(at, self._header.tokens, rows)

    def _split_of_all(self, at: Moment, ids: torch.Tensor) -> torch.Tensor | None:
        """[T, K] int32 slots of this rank's tokens by one split of everyone's."""
        if not self._tables.replicates(at.layer):
            return None  # there is one way
        with self._group.doing("ids"):
            everyone = self._group.circle.ids(at, self._header.tokens, ids.to(torch.int16))
        self.counters.collectives += 1
        routing, _ = self._tables.route_all(at.layer, everyone, self.member)
        return torch.from_numpy(routing.slots)

    def _build(self, record: EpochRecord, beside: bool) -> LinkGroup:
        return _meet(self._order, self._hub, record, self._group.keys if beside else frozenset())

    def _own(self, meeting: Meeting) -> LinkGroup:
        assert isinstance(meeting, LinkGroup), "made by `meet`"
        return meeting


class _Dispatch:
    """A dispatch whose rows have left."""

    def __init__(self, exchange: LinksExchange, group: LinkGroup, at: Moment, rows: Rows | None) -> None:
        self._exchange, self._group, self._at, self._rows = exchange, group, at, rows
        self._batch: ExpertBatch | None = None  # of a rank with experts

    def wait(self) -> ExpertBatch:
        if self._group.index not in self._group.holders:
            return self._exchange.nothing
        started = time.perf_counter()
        self._batch = self._exchange.receive(self._at, self._rows)
        self._exchange.counters.dispatch_seconds += time.perf_counter() - started
        return self._batch

    def combine(self, y: torch.Tensor) -> "_Combine":
        started = time.perf_counter()
        exchange, group, batch, own = self._exchange, self._group, self._batch, None
        if batch is not None:
            assert y.shape[0] == sum(batch.rows), (tuple(y.shape), batch.rows)
            y = y.contiguous()
            with group.doing("combine"):
                group.circle.give_back(self._at, y, batch.rows)
            if self._rows is not None:
                before = sum(batch.rows[: group.index])
                own = y[before : before + batch.rows[group.index]]
        exchange.counters.combine_seconds += time.perf_counter() - started
        return _Combine(exchange, group, self._at, self._rows is not None, own)


class _Combine:
    def __init__(
        self, exchange: LinksExchange, group: LinkGroup, at: Moment, source: bool, own: torch.Tensor | None
    ) -> None:
        self._exchange, self._group, self._at, self._source, self._own = exchange, group, at, source, own

    def wait(self) -> torch.Tensor:
        if not self._source:
            return self._exchange.no_sums
        started = time.perf_counter()
        group, counters = self._group, self._exchange.counters
        with group.doing("combine"):
            sums = group.circle.sum(self._at, self._own)
        counters.combine_seconds += time.perf_counter() - started
        return sums


def _meet(order: ExchangeOrder, hub: Hub, record: EpochRecord, running: frozenset[Key]) -> LinkGroup:
    """This rank's end of an epoch's group; blocks until all members have come. Raises RankLost.

    running: processes whose links carry steps meanwhile
    """
    members = record.membership
    circle = hub.circle(members, max(BUILD_DEADLINE, record.connect), running)
    return LinkGroup(circle, members, members.index(order.rank), record.timeout)
