"""CollectiveExchange: dispatch and combine over a group's all-to-all, the same code for gloo and NCCL.

Per layer every member calls dispatch and combine once, in the same order. A token travels at most once to each
rank, with all its (slot, weight) pairs there. One vector per token and rank comes back in the activations' dtype
(each rank sums in float32 and rounds once); sources sum in float32, in the order of seats, so that equal inputs
give equal bits. Shape letters: T own tokens, H hidden, K top-k.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from experts.dump import StepMoment
from experts.epoch.agreement import Astray, GoTo, Row, StepHeader, StepWish, agree
from experts.epoch.membership import EpochRecord, Membership
from experts.errors import RankLost
from experts.exchange.base import DispatchHandle, Exchange, ExchangeCounters, ExchangeOrder, Meeting
from experts.exchange.block import BlockForm, Blocks, Stamp, write_stamp
from experts.exchange.control import Ring
from experts.exchange.doorbell import Doorbell
from experts.exchange.flight import Dispatch, LayerPlan
from experts.exchange.group import build_group, connect_store
from experts.exchange.group_control import GroupControl
from experts.exchange.guard import GuardedGroup
from experts.exchange.routing import Tables
from experts.exchange.sizes import COLLECTIVE_BYTES, bucket, pads
from experts.exchange.split import SplitPolicy
from experts.exchange.transport import Group
from experts.exchange.wire import Route
from experts.placement import Placement

_PROMISE = 10.0  # s that a rank which wants to give up an epoch waits for the end of a header


@dataclass(frozen=True, slots=True)
class Offer:
    """A placement version that this rank holds complete. switch: what the step thread does before its first use."""

    tables: Tables
    switch: Callable[[], None] | None


@dataclass(frozen=True, slots=True)
class _Next:
    """An epoch that this rank is ready for. group: None where it is no member."""

    membership: Membership
    group: GuardedGroup | None


class CollectiveExchange(Exchange):
    """One member's end, in one epoch after another. Groups belong to the exchange once it has them: `close` drops them.

    rank: this member's seat
    placement: of seats 0 .. R-1, of which those without a member hold nothing
    form: what rows look like
    budget: tokens of a whole step over all ranks
    policy: of the split
    collective_bytes: see `sizes`
    control: None = nobody rings for this member

    Every method raises RankLost once a member is gone, a payload is of another step, or the exchange was closed.
    """

    lockstep = True
    control: GroupControl

    def __init__(
        self,
        group: Group,
        membership: Membership,
        rank: int,
        placement: Placement,
        form: BlockForm,
        budget: int,
        policy: SplitPolicy | None = None,
        collective_bytes: int = COLLECTIVE_BYTES,
        control: GroupControl | None = None,
    ) -> None:
        assert membership.index(rank) == group.index, (rank, group.index)
        self.control = control or GroupControl(Doorbell())
        self.counters = ExchangeCounters()
        self._rank = rank
        self._form, self._budget, self._collective_bytes = form, budget, collective_bytes
        self._experts_per_layer = placement.experts
        self._lock = threading.Lock()  # of what other threads leave for the step thread
        self._tables = Tables(placement, membership, policy or SplitPolicy())
        self._offered = {placement.version: Offer(self._tables, None)}
        self._newest = placement.version
        self._next: _Next | None = None
        self._dropped = 0  # the newest epoch that was given up
        # A header is under way in which this rank says that it is ready for the next epoch: if all do, all go over.
        self._promised = False
        self._promise_over = threading.Condition(self._lock)
        self._padded = True
        self._layer = -1  # of the newest dispatch of the step under way
        self._meet: Callable[[EpochRecord], Group] | None = None  # builds the groups of later epochs
        self._enter(GuardedGroup(group, membership, self.counters), placement.version)

    @classmethod
    def join(cls, order: ExchangeOrder, record: EpochRecord, bell: Doorbell, ring: Ring) -> "CollectiveExchange":
        """Meet the members of an epoch and build their group; blocks until all have come. Raises RankLost."""
        exchange = cls(
            _meet(order, record), record.membership, order.rank, order.placement, order.form, order.budget, order.policy,
            control=GroupControl(bell, ring),
        )  # fmt: skip
        exchange._meet = partial(_meet, order)
        return exchange

    @property
    def version(self) -> int:
        return self._header.version

    @property
    def newest(self) -> int:
        return self._newest

    def offer(self, placement: Placement, switch: Callable[[], None] | None, policy: SplitPolicy | None = None) -> None:
        tables = Tables(placement, self._group.membership, policy or self._tables.policy, self._tables)
        with self._lock:
            assert placement.version > self._newest, (placement.version, self._newest)
            self._offered[placement.version] = Offer(tables, switch)
            self._newest = placement.version

    def prepare(self, record: EpochRecord) -> None:
        assert self._meet is not None, "an exchange whose group was handed to it gets the next one so, too"
        self.offer_epoch(record.membership, self._meet(record) if record.membership.seats(self._rank) else None)

    def offer_epoch(self, membership: Membership, group: Group | None) -> None:
        """`prepare`, given this rank's end of the next group; None: it is no member."""
        own = None if group is None else GuardedGroup(group, membership, self.counters)
        with self._lock:
            late = membership.epoch <= max(self.epoch, self._dropped)
            if not late:
                self._next = _Next(membership, own)
        if late:  # its build took longer than anyone waited
            if own is not None:
                own.close()
            raise RankLost(membership.epoch, -1, "the epoch was given up while its group was built")

    def drop_epoch(self, epoch: int) -> None:
        with self._lock:
            self._dropped = max(self._dropped, epoch)
            if not self._promise_over.wait_for(lambda: not self._promised, _PROMISE):
                raise RankLost(self.epoch, self._header.step, f"a header has not ended within {_PROMISE:g} s")
        self._forget_next()

    def _forget_next(self) -> None:
        with self._lock:
            dropped, self._next = self._next, None
        if dropped is not None and dropped.group is not None:
            dropped.group.close()

    def meet(self, record: EpochRecord) -> GuardedGroup:
        assert self._meet is not None, "an exchange whose group was handed to it gets the next one so, too"
        return GuardedGroup(self._meet(record), record.membership, self.counters)

    def recover(self, meeting: Meeting, base: int, placement: Placement, policy: SplitPolicy) -> None:
        assert isinstance(meeting, GuardedGroup), "made by `meet`"
        own = meeting
        try:
            if base > self.version:  # else it is in use here, or an attempt that failed was made from it
                self._switch_to(base)
            tables = Tables(placement, own.membership, policy, self._tables)
            with self._lock:
                assert placement.version > self._newest, (placement.version, self._newest)
                self._offered = {placement.version: Offer(tables, None)}
                self._newest = placement.version
            self._tables = tables
            self._enter(own, placement.version)
            self._forget_next()  # one that was being prepared when the last epoch broke
        except BaseException:
            own.close()
            raise

    def open_step(self, wish: StepWish) -> StepHeader:
        answer = self._ask(wish)
        while isinstance(answer, GoTo):
            last = self._group
            try:
                entered = self._enter_next()
            finally:
                self._keep_no_promise()
            if not entered:
                return self._left()
            answer = self._ask(wish)
            last.close()  # not before: by now every member has had its last header
        self._switch_to(answer.version)
        form = self._form
        row_bytes = form.dispatch_bytes(1) + form.combine_bytes(1)
        self._padded = pads(answer.tokens, len(self._group.holders), form.top_k, row_bytes, self._collective_bytes)
        self._header = answer
        self.counters.steps += 1
        return answer

    def dispatch(self, layer: int, x: torch.Tensor, route: Route) -> DispatchHandle:
        started = time.perf_counter()
        header = self._header
        self._layer = layer
        assert x.shape[0] <= header.tokens[self.member], f"{x.shape[0]} tokens, granted {header.tokens[self.member]}"
        stamp = Stamp(header.epoch, header.step, layer, header.version)
        ids = route.ids.to("cpu", torch.int16)
        plan = self._padded_plan(stamp, ids) if self._padded else self._exact_plan(stamp, ids)
        handle = Dispatch(self._group, self._form, plan, x, route)
        self.counters.layers += 1
        self.counters.dispatch_seconds += time.perf_counter() - started
        return handle

    def moment(self) -> StepMoment:
        return self._group.moment(self._layer)

    def close(self) -> None:
        self._forget_next()
        self.control.abort()

    def _ask(self, wish: StepWish) -> StepHeader | GoTo:
        """What all members do next, from what each brings. Raises RankLost where one is at another step."""
        group = self._group
        step = self._header.step + 1
        group.step, self._layer = step, -1
        with self._lock:
            ready = self.epoch if self._next is None else self._next.membership.epoch
            newest = self._newest
            self._promised = self._next is not None
        mine = Row(self.epoch, step, newest, wish.decode, wish.prefill, int(wish.stop), ready)
        leaving = False
        try:
            answer = agree(self.control.gather(mine), self.epoch, step, self._budget)
            leaving = isinstance(answer, GoTo)
        finally:
            if not leaving:
                self._keep_no_promise()
        if isinstance(answer, Astray):
            raise group.lost(f"{group.name(answer.member)} is at epoch {answer.epoch}, step {answer.step}")
        return answer

    def _keep_no_promise(self) -> None:
        """This rank stays where it is, or has gone over: who waits to drop the next epoch may."""
        with self._lock:
            self._promised = False
            self._promise_over.notify_all()

    def _enter(self, group: GuardedGroup, version: int) -> None:
        """Begin an epoch under a placement version."""
        self._group = group
        self.control.enter(group)
        self.member, self.size, self.epoch = group.index, group.size, group.epoch
        nothing = (0,) * group.size
        self._header = StepHeader(group.epoch, -1, version, nothing, nothing, False)

    def _enter_next(self) -> bool:
        """Leave the epoch for the one that all are ready for; whether this rank is in it."""
        with self._lock:
            following, self._next = self._next, None
            if following is None:  # this rank said that it is ready, and was closed since
                raise self._group.lost("the exchange was closed")
            if following.group is None:
                return False
            self._offered = {
                version: Offer(offer.tables.seated(following.membership), offer.switch)
                for version, offer in self._offered.items()
            }
            self._tables = self._offered[self.version].tables
            self._enter(following.group, self.version)
        return True

    def _left(self) -> StepHeader:
        """The last header of a rank that the next epoch goes on without."""
        nothing = (0,) * self.size
        return StepHeader(self.epoch, self._header.step + 1, self.version, nothing, nothing, True)

    def _switch_to(self, version: int) -> None:
        """Bring this rank to the step's placement version."""
        if version == self._header.version:
            return
        with self._lock:
            if version not in self._offered:
                raise self._group.lost(f"placement version {version} is not held here, but {sorted(self._offered)}")
            offer = self._offered[version]
            self._offered = {v: later for v, later in self._offered.items() if v >= version}
        if offer.switch is not None:
            offer.switch()
        self._tables = offer.tables

    def _padded_plan(self, stamp: Stamp, ids: torch.Tensor) -> LayerPlan:
        """Sizes from the header alone; each source splits its own tokens."""
        pairs = sum(self._header.tokens) * self._form.top_k
        few = len(self._group.sources) > 1 and pairs < self._tables.policy.floor * self._experts_per_layer
        routing = self._tables.route_one(stamp.layer, ids, self.member, whole=few)
        rooms = {i: bucket(count) for i, count in enumerate(self._header.tokens) if count}
        send = {j: rooms[self.member] for j in self._peers(self._group.holders)} if self.member in rooms else {}
        receive = {i: rooms[i] for i in self._peers(list(rooms))} if self.member in self._group.holders else {}
        return LayerPlan(stamp, routing, send, receive)

    def _exact_plan(self, stamp: Stamp, ids: torch.Tensor) -> LayerPlan:
        """Everyone's ids first; one split of all tokens gives every size."""
        everyone = self._gather_ids(stamp, ids)
        routing, counts = self._tables.route_all(stamp.layer, everyone, self.member)
        sources = [i for i, count in enumerate(self._header.tokens) if count]
        send = {j: len(routing.rows[j]) for j in self._peers(self._group.holders)} if self.member in sources else {}
        receive = {i: counts[i] for i in self._peers(sources)} if self.member in self._group.holders else {}
        return LayerPlan(stamp, routing, send, receive)

    def _gather_ids(self, stamp: Stamp, ids: torch.Tensor) -> dict[int, torch.Tensor]:
        """Everyone's top-k ids [T, K] int16 by member: an all-to-all, since only some members have any."""
        form, group = self._form, self._group
        rooms = {i: count for i, count in enumerate(self._header.tokens) if count}
        mine = form.ids_bytes(rooms.get(self.member, 0))
        send = dict.fromkeys(self._peers(list(range(group.size))), mine) if self.member in rooms else {}
        receive = {i: form.ids_bytes(rooms[i]) for i in self._peers(list(rooms))}
        blocks = Blocks.allocate(group.size, send, receive, group.device)
        for block in blocks.to_send():
            if block.numel():
                write_stamp(block, stamp, ids.shape[0])
                form.ids(block, ids.shape[0]).copy_(ids)
        group.finish(group.exchange(blocks), "ids")
        arrived = blocks.arrived()
        everyone = {self.member: ids}
        for i in receive:
            everyone[i] = form.ids(arrived[i], group.check(arrived[i], i, stamp, rooms[i])).cpu()
        return dict(sorted(everyone.items()))

    def _peers(self, members: list[int]) -> list[int]:
        return [member for member in members if member != self.member]


def _meet(order: ExchangeOrder, record: EpochRecord) -> Group:
    """This rank's end of an epoch's group; blocks until all members have come. Raises RankLost."""
    members, seconds = record.membership, record.timeout
    store = connect_store(record.store_host, record.store_port, seconds)
    index = members.index(order.rank)
    return build_group(
        store, members.epoch, index, members.size, order.device, order.host, seconds, connect=record.connect
    )
