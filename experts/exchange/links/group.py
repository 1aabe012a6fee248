"""LinkGroup: the circle of an epoch whose every failure is a RankLost that names rank, step and layer."""

import errno
import os
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from experts.dump import StepMoment
from experts.epoch.agreement import Row
from experts.epoch.membership import EpochRecord, Membership
from experts.errors import RankLost
from experts.exchange.epoch_group import EpochGroup
from experts.exchange.links.circle import Circle, Trouble
from experts.exchange.links.frame import Outcome
from experts.exchange.links.hub import Hub, Key
from experts.exchange.transport import BUILD_DEADLINE

P = ParamSpec("P")
T = TypeVar("T")
# Members up to which each sends its row to each: one way instead of two, at the price of more frames.
_DIRECT = 4


class LinkGroup(EpochGroup):
    """circle: whose calls are the step thread's, through `call`."""

    def __init__(self, circle: Circle, membership: Membership, index: int, timeout: float) -> None:
        """timeout: s, of every wait."""
        super().__init__(membership, index)
        self.circle, self.timeout = circle, timeout
        self._awake = False  # all open the next step by themselves, since the last one ran tokens
        self._leader = self.sources[0] if self.size > _DIRECT and self.sources else None
        self._doing: tuple[str, int, float] | None = None

    @classmethod
    def meet(cls, hub: Hub, rank: int, record: EpochRecord, running: frozenset[Key] = frozenset()) -> "LinkGroup":
        """This rank's end of an epoch; blocks until all members have come. Raises RankLost.

        running: processes whose links carry steps meanwhile
        """
        members = record.membership
        circle = hub.circle(members, max(BUILD_DEADLINE, record.connect), record.timeout, running)
        return cls(circle, members, members.index(rank), record.timeout)

    @property
    def keys(self) -> frozenset[Key]:
        """The members' processes."""
        return frozenset((member.rank, member.incarnation) for member in self.membership.members)

    def call(self, phase: str, layer: int, what: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """What a call of the circle returns. A dump names `phase` and `layer` (-1 = none) meanwhile. Raises RankLost."""
        self._doing = phase, layer, time.monotonic()
        try:
            return what(*args, **named)
        except Trouble as trouble:
            raise self._broken(trouble) from None
        finally:
            self._doing = None

    def gather(self, row: Row) -> list[Row]:
        rows = self.call("header", -1, self.circle.header, row, self._leader if self._awake else None)
        self._awake = any(row.decode or row.prefill for row in rows)
        return rows

    @property
    def waits(self) -> bool:
        """Whether the step thread is in a call of the circle. Any thread."""
        return self._doing is not None

    def moment(self, layer: int) -> StepMoment:
        doing = self._doing
        if doing is None:
            return StepMoment(self.epoch, self.step, layer)
        peers = tuple(map(self.name, self.circle.missing()))
        return StepMoment(self.epoch, self.step, layer, doing[0], time.monotonic() - doing[2], peers)

    def close(self) -> None:
        self.circle.abort()

    def _broken(self, trouble: Trouble) -> RankLost:
        """What is raised where a call did not end well."""
        phase, layer, _ = self._doing or ("step", -1, 0.0)
        where = phase if layer < 0 else f"{phase} of layer {layer}"
        who = self.name(trouble.member) if trouble.member >= 0 else "a member"
        match trouble.outcome:
            case Outcome.OVER:
                return self.lost("the exchange was closed")
            case Outcome.LEFT:
                return self.lost(f"{who} has left the epoch, seen in the {where}")
            case Outcome.DEAD:
                why = os.strerror(trouble.error) if trouble.error > 0 else "its connection has ended"
                died = trouble.error == errno.EOWNERDEAD
                member = self.membership.members[trouble.member]
                return RankLost(
                    self.epoch, self.step, f"lost {who} in the {where}: {'its process has died' if died else why}",
                    (member.rank, member.incarnation) if died else None,
                )  # fmt: skip
            case Outcome.LATE:
                return self.lost(f"timed out after {self.timeout:g} s in the {where}, waiting for {who}")
            case Outcome.NO_MEMORY:
                return self.lost(f"no memory in the {where}")
        return self.lost(f"{who} sent {trouble.found} in the {where}")
