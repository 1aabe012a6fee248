"""SteppedExchange: headers, placements and epochs of an exchange whose members run their steps in lockstep.

How its tokens travel is a subclass's. Nothing here knows what the members are connected by.
"""

import threading
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from experts.dump import StepMoment
from experts.epoch.agreement import Astray, GoTo, Row, StepHeader, StepWish, agree
from experts.epoch.membership import EpochRecord, Membership
from experts.errors import RankLost
from experts.exchange.base import Exchange, ExchangeCounters, ExchangeOrder, Meeting
from experts.exchange.epoch_group import EpochGroup
from experts.exchange.group_control import GroupControl
from experts.exchange.routing import Tables
from experts.exchange.split import SplitPolicy
from experts.placement import Placement

G = TypeVar("G", bound=EpochGroup)
_PROMISE = 10.0  # s that a rank which wants to give up an epoch waits for the end of a header


@dataclass(frozen=True, slots=True)
class Offer:
    """A placement version that this rank holds complete. switch: what the step thread does before its first use."""

    tables: Tables
    switch: Callable[[], None] | None


@dataclass(frozen=True, slots=True)
class _Next(Generic[G]):
    """An epoch that this rank is ready for. group: None where it is no member."""

    membership: Membership
    group: G | None


class SteppedExchange(Exchange, Generic[G]):
    """One member's end, in one epoch after another. Groups belong to the exchange once it has them: `close` drops them.

    Every method raises RankLost once a member is gone, a payload is of another step, or the exchange was closed.
    """

    lockstep = True
    control: GroupControl

    def __init__(self, order: ExchangeOrder, group: G, control: GroupControl, counters: ExchangeCounters) -> None:
        """group: of the first epoch."""
        self.control, self.counters = control, counters
        self._order = order
        self._lock = threading.Lock()  # of what other threads leave for the step thread
        placement = order.placement
        self._tables = Tables(placement, group.membership, order.policy)
        self._offered = {placement.version: Offer(self._tables, None)}
        self._newest = placement.version
        self._next: _Next[G] | None = None
        self._dropped = 0  # the newest epoch that was given up
        # A header is under way in which this rank says that it is ready for the next epoch: if all do, all go over.
        self._promised = False
        self._promise_over = threading.Condition(self._lock)
        self._layer = -1  # of the newest dispatch of the step under way
        self._enter(group, placement.version)

    @abstractmethod
    def _build(self, record: EpochRecord, beside: bool) -> G:
        """This rank's end of an epoch's group; blocks until all members have come. Raises RankLost.

        beside: steps of the epoch before run on meanwhile
        """

    @abstractmethod
    def _own(self, meeting: Meeting) -> G:
        """What `meet` made."""

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
        stays = record.membership.seats(self._order.rank)
        self._offer_epoch(record.membership, self._build(record, beside=True) if stays else None)

    def _offer_epoch(self, membership: Membership, own: G | None) -> None:
        """Go over to an epoch once all are ready for it. own: this rank's end of its group, None: it is no member."""
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

    def meet(self, record: EpochRecord) -> G:
        return self._build(record, beside=False)

    def recover(self, meeting: Meeting, base: int, placement: Placement, policy: SplitPolicy) -> None:
        own = self._own(meeting)
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
        self._header = answer
        self.counters.steps += 1
        return answer

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
            answer = agree(self.control.gather(mine), self.epoch, step, self._order.budget)
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

    def _enter(self, group: G, version: int) -> None:
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
