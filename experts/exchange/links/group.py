"""LinkGroup: the circle of an epoch whose every failure is a RankLost that names rank, step and layer."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from experts.dump import StepMoment
from experts.epoch.agreement import Row
from experts.epoch.membership import Membership
from experts.errors import RankLost
from experts.exchange.epoch_group import EpochGroup
from experts.exchange.links.circle import Circle, Moment, Trouble
from experts.exchange.links.frame import Outcome
from experts.exchange.links.hub import Key


class LinkGroup(EpochGroup):
    """circle: only to be called inside `doing`."""

    def __init__(self, circle: Circle, membership: Membership, index: int, timeout: float) -> None:
        """timeout: s, of every wait."""
        super().__init__(membership, index)
        self.circle, self.timeout = circle, timeout
        self._layer = -1
        self._doing: tuple[str, float] | None = None

    @property
    def keys(self) -> frozenset[Key]:
        """The members' processes."""
        return frozenset((member.rank, member.incarnation) for member in self.membership.members)

    def at(self, layer: int, version: int) -> Moment:
        """A call of the step under way that waits as long as any may."""
        self._layer = layer
        return Moment(self.step, layer, version, self._until())

    def gather(self, row: Row) -> list[Row]:
        self._layer = -1
        with self.doing("header"):
            return self.circle.header(row, self._until())

    def idle(self, until: int | None) -> bool:
        """See Circle.idle."""
        return self.circle.idle(until)

    @contextmanager
    def doing(self, phase: str) -> Iterator[None]:
        """Around a call of the circle: a dump names `phase`, and Trouble becomes RankLost."""
        self._doing = phase, time.monotonic()
        try:
            yield
        except Trouble as trouble:
            raise self._lost(trouble, phase) from None
        finally:
            self._doing = None

    def moment(self, layer: int) -> StepMoment:
        doing = self._doing
        if doing is None:
            return StepMoment(self.epoch, self.step, layer)
        peers = tuple(map(self.name, self.circle.missing()))
        return StepMoment(self.epoch, self.step, layer, doing[0], time.monotonic() - doing[1], peers)

    def close(self) -> None:
        self.circle.abort()

    def _until(self) -> int:
        return time.monotonic_ns() + round(self.timeout * 1e9)

    def _lost(self, trouble: Trouble, phase: str) -> RankLost:
        where = phase if self._layer < 0 else f"{phase} of layer {self._layer}"
        who = self.name(trouble.member) if trouble.member >= 0 else "a member"
        match trouble.outcome:
            case Outcome.OVER:
                return self.lost("the exchange was closed")
            case Outcome.LEFT:
                return self.lost(f"{who} has left the epoch, seen in the {where}")
            case Outcome.DEAD:
                why = "its connection has ended" if trouble.error < 0 else os.strerror(trouble.error)
                return self.lost(f"lost {who} in the {where}: {why}")
            case Outcome.LATE:
                return self.lost(f"timed out after {self.timeout:g} s in the {where}, waiting for {who}")
            case Outcome.NO_MEMORY:
                return self.lost(f"no memory in the {where}")
        return self.lost(f"{who} sent {trouble.found} in the {where}")
