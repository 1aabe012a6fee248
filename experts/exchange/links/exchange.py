"""LinksExchange: dispatch and combine over links, one call into C each. Its steps are in lockstep, no group is built.

A source splits its own tokens, or those of all sources after their ids have travelled between the sources (see
`together`). Shape letters: T own tokens, N rows that arrived, H hidden, K top-k.
"""

import time

import torch

from experts.epoch.agreement import StepHeader, StepWish
from experts.epoch.membership import EpochRecord
from experts.exchange.base import Compute, DispatchHandle, ExchangeCounters, ExchangeOrder, Meeting
from experts.exchange.control import Ring
from experts.exchange.doorbell import Doorbell
from experts.exchange.links.circle import Rows
from experts.exchange.links.control import LinkControl
from experts.exchange.links.group import LinkGroup
from experts.exchange.links.hub import Hub
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
        self._all = False  # sources split together, after their ids have travelled
        self.holds = False  # experts
        self._counted = group, 0  # bytes of a group's circle
        no_x = torch.empty((0, order.form.hidden), dtype=order.form.dtype)
        no_slots = torch.empty((0, order.form.top_k), dtype=torch.int32)
        self.no_sums = torch.empty((0, order.form.hidden), dtype=torch.float32)
        self.nothing = ExpertBatch(no_x, no_slots, no_slots.float())  # arrives at a rank without experts
        super().__init__(order, group, control, ExchangeCounters())

    @classmethod
    def join(cls, order: ExchangeOrder, record: EpochRecord, bell: Doorbell, ring: Ring) -> "LinksExchange":
        """Meet the members of an epoch; blocks until all have come. Raises RankLost."""
        assert order.hub is not None, "a worker whose exchange is links has a hub"
        group = LinkGroup.meet(order.hub, order.rank, record)
        return cls(order, order.hub, group, LinkControl(bell))

    def open_step(self, wish: StepWish) -> StepHeader:
        header = super().open_step(wish)
        tokens, top_k = sum(header.tokens), self._order.form.top_k
        # Below it reading weights is the cost, and sources that can't see each other read no copy twice.
        few = tokens * top_k < self._tables.policy.floor * self._order.placement.experts
        together = tokens >= self._together
        turn = None if few and len(self._group.sources) > 1 else 0 if together else self.member
        self._all = turn is not None and together and sum(1 for count in header.tokens if count) > 1
        self.holds = self.member in self._group.holders
        self._count_bytes()
        self._group.circle.step(header.step, header.version, header.tokens, turn)
        return header

    def dispatch(self, layer: int, x: torch.Tensor, route: Route) -> DispatchHandle:
        began, group = time.monotonic(), self._group
        rows = self._rows(layer, x, route)
        if rows is not None:
            slots = self._split_of_all(layer, rows.ids) if self._all else None
            group.call("dispatch", layer, group.circle.dispatch, layer, rows, self._tables, slots)
        self.counters.layers += 1
        self.counters.dispatch_seconds += time.monotonic() - began
        return _Dispatch(self, layer, rows)

    def layer(self, layer: int, x: torch.Tensor, route: Route, compute: Compute) -> torch.Tensor:
        if not self.holds:
            return self._ask_experts(layer, x, route)
        if self._header.tokens[self.member]:
            return super().layer(layer, x, route, compute)
        self.give_back(layer, compute(layer, self.collect(layer, None)))
        self.counters.layers += 1
        return self.no_sums

    def _ask_experts(self, layer: int, x: torch.Tensor, route: Route) -> torch.Tensor:
        """A layer of a rank without experts."""
        rows = self._rows(layer, x, route)
        if rows is None:
            return self.no_sums
        began, group = time.monotonic(), self._group
        slots = self._split_of_all(layer, rows.ids) if self._all else None
        # It waits in the combine alone: what is sent waits for nobody, unless it fills the connection.
        sums = group.call("combine", layer, group.circle.ask, layer, rows, self._tables, slots)
        self.counters.layers += 1
        self.counters.combine_seconds += time.monotonic() - began
        return sums

    def collect(self, layer: int, own: Rows | None) -> ExpertBatch:
        """What arrived here. Raises RankLost."""
        began, group, self._layer = time.monotonic(), self._group, layer
        batch = group.call("dispatch", layer, group.circle.collect, layer, own)
        self.counters.dispatch_seconds += time.monotonic() - began
        return batch

    def give_back(self, layer: int, y: torch.Tensor) -> None:
        """Send sums [N, H] float32 to where their rows came from. Raises RankLost."""
        began, group = time.monotonic(), self._group
        assert y.dtype is torch.float32, y.dtype
        group.call("combine", layer, group.circle.give_back, layer, y.contiguous())
        self.counters.combine_seconds += time.monotonic() - began

    def sum(self, layer: int, own: torch.Tensor | None) -> torch.Tensor:
        """See Circle.sum. Raises RankLost."""
        began, group = time.monotonic(), self._group
        sums = group.call("combine", layer, group.circle.sum, layer, own)
        self.counters.combine_seconds += time.monotonic() - began
        return sums

    def _rows(self, layer: int, x: torch.Tensor, route: Route) -> Rows | None:
        """This rank's tokens; None where the header gave it none."""
        self._layer = layer
        most, ids, weights = self._header.tokens[self.member], route.ids, route.weights
        assert x.shape[0] <= most, f"{x.shape[0]} tokens, granted {most}"
        assert x.dtype is self._order.form.dtype, f"{x.dtype}, expected {self._order.form.dtype}"
        assert weights.dtype is torch.float32, weights.dtype
        if not most:
            return None
        if ids.dtype is not torch.int32:
            ids = ids.to(torch.int32)
        return Rows(x.contiguous(), ids.contiguous(), weights.contiguous())

    def _split_of_all(self, layer: int, ids: torch.Tensor) -> torch.Tensor | None:
        """[T, K] int32 slots of this rank's tokens by one split of everyone's. Raises RankLost."""
        if not self._tables.replicates(layer):
            return None  # there is one way
        group = self._group
        everyone = group.call("ids", layer, group.circle.ids, layer, ids.to(torch.int16))
        self.counters.collectives += 1
        routing, _ = self._tables.route_all(layer, everyone, self.member)
        return torch.from_numpy(routing.slots)

    def _count_bytes(self) -> None:
        """Of the step before; each epoch's circle begins at 0."""
        group, before = self._counted
        sent = self._group.circle.bytes_sent
        self.counters.bytes_sent += sent - (before if group is self._group else 0)
        self._counted = self._group, sent

    def _build(self, record: EpochRecord, beside: bool) -> LinkGroup:
        running = self._group.keys if beside else frozenset()
        return LinkGroup.meet(self._hub, self._order.rank, record, running)

    def _own(self, meeting: Meeting) -> LinkGroup:
        assert isinstance(meeting, LinkGroup), "made by `meet`"
        return meeting


class _Dispatch:
    """A dispatch whose rows have left. rows: None where this rank brings none."""

    def __init__(self, exchange: LinksExchange, layer: int, rows: Rows | None) -> None:
        self._exchange, self._layer, self._rows = exchange, layer, rows
        self._batch: ExpertBatch | None = None  # of a rank with experts

    def wait(self) -> ExpertBatch:
        if not self._exchange.holds:
            return self._exchange.nothing
        self._batch = self._exchange.collect(self._layer, self._rows)
        return self._batch

    def combine(self, y: torch.Tensor) -> "_Combine":
        exchange, batch, own = self._exchange, self._batch, None
        if batch is not None:
            assert y.shape[0] == sum(batch.rows), (tuple(y.shape), batch.rows)
            exchange.give_back(self._layer, y)
            if self._rows is not None:
                before = sum(batch.rows[: exchange.member])
                own = y[before : before + batch.rows[exchange.member]].contiguous()
        return _Combine(exchange, self._layer, self._rows is not None, own)


class _Combine:
    """own: [n, H] float32 of this rank's own experts, for its own tokens."""

    def __init__(self, exchange: LinksExchange, layer: int, source: bool, own: torch.Tensor | None) -> None:
        self._exchange, self._layer, self._source, self._own = exchange, layer, source, own

    def wait(self) -> torch.Tensor:
        return self._exchange.sum(self._layer, self._own) if self._source else self._exchange.no_sums
