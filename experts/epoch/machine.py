"""EpochMachine: how members get from one epoch into the next, whatever the cause: the first one, a planned change, a loss.

An attempt to enter an epoch is in one of these states: proposed (members build the group), ready (all have built it, and
begin steps), dropping (members are asked to forget it). It ends with `Enter`, when all have begun a step, or with `Void`.
Numbers are never used twice, and every wait has a deadline. The machine gets events and returns actions; its caller does
the actions and reports their results as events. The time is an argument.

A planned attempt is made while the epoch before runs, and members enter it by themselves in the header in which all say that
they are ready. So it can only be given up by asking every member: it answers `Dropped` when it can't enter any more, or
`Began` when it has entered. Without an epoch before, nobody needs to be asked: members are suspended before the next attempt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Propose(NamedTuple):
    """Bring these ranks into an epoch.

    planned: the one before runs on until they are in
    asked: who must prepare or give up its place, members and those that leave
    """

    members: frozenset[int]
    planned: bool
    asked: frozenset[int]


class Built(NamedTuple):
    """A rank has its end of the group."""

    number: int
    rank: int


class NotBuilt(NamedTuple):
    """A rank could not build its end."""

    number: int
    rank: int
    why: str


class Began(NamedTuple):
    """A rank's newest step is of this epoch."""

    number: int
    rank: int


class Dropped(NamedTuple):
    """A rank has forgotten an epoch and can't come into it any more."""

    number: int
    rank: int


class Lost(NamedTuple):
    """A rank's process is gone, or about to be ended."""

    rank: int


class Broke(NamedTuple):
    """The epoch in use broke, though no process is known to be gone: a planned change of it is void."""


class Build(NamedTuple):
    """Have every rank in `ranks` build its end of the group of epoch `number`."""

    number: int
    ranks: frozenset[int]
    planned: bool


class Look(NamedTuple):
    """All have built: see that a step runs, and which epoch it is of."""

    number: int
    ranks: frozenset[int]


class Drop(NamedTuple):
    """Have every rank in `ranks` forget the epoch."""

    number: int
    ranks: frozenset[int]


class Enter(NamedTuple):
    """The attempt's end: all members are in the epoch."""

    number: int


class Void(NamedTuple):
    """The attempt's end: not all are in the epoch, or ever will be. silent: who did not answer when asked to forget it."""

    number: int
    why: str
    silent: frozenset[int] = frozenset()


Event = Propose | Built | NotBuilt | Began | Dropped | Lost | Broke
Action = Build | Look | Drop | Enter | Void


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds.

    first: for all to build the group of the first epoch, while everything starts
    build: of a later one
    enter: for all to begin a step then
    drop: for all to forget it
    """

    first: float
    build: float
    enter: float
    drop: float


@dataclass(slots=True)
class Attempt:
    """The way into one epoch. waiting: ranks that have not built, begun or dropped yet, by the state."""

    number: int
    members: frozenset[int]
    planned: bool
    asked: frozenset[int]
    deadline: float
    state: str = "proposed"
    why: str = ""
    waiting: set[int] = field(default_factory=set)
    began: set[int] = field(default_factory=set)


class EpochMachine:
    """number: the newest that was used
    members: of the epoch entered last
    attempt: the one under way, None between two
    """

    def __init__(self, limits: Limits) -> None:
        self.number = 0
        self.members: frozenset[int] = frozenset()
        self.attempt: Attempt | None = None
        self._limits = limits

    def tick(self, now: float, events: Sequence[Event]) -> list[Action]:
        """What is to be done after some events, in their order, and with the time that has passed."""
        actions: list[Action] = []
        for event in events:
            actions += self._after(now, event)
        attempt = self.attempt
        if attempt is not None and now >= attempt.deadline:
            actions += self._late(now, attempt)
        return actions

    def _after(self, now: float, event: Event) -> list[Action]:
        attempt = self.attempt
        if isinstance(event, Propose):
            assert attempt is None, "one attempt at a time"
            return self._propose(now, event)
        if attempt is None:
            return []
        if isinstance(event, Lost):
            return self._lost(now, attempt, event.rank)
        if isinstance(event, Broke):
            if not attempt.planned:
                return []
            attempt.why = "the epoch before it broke"
            return self._void(attempt)
        if event.number != attempt.number:
            return []  # of an attempt that ended
        match event:
            case Built(rank=rank) if attempt.state == "proposed":
                attempt.waiting.discard(rank)
                return self._all_built(now, attempt)
            case NotBuilt(rank=rank, why=why) if attempt.state == "proposed":
                return self._give_up(now, attempt, f"rank {rank}: {why}")
            case Began(rank=rank):
                return self._began(attempt, rank)
            case Dropped(rank=rank) if attempt.state == "dropping":
                attempt.waiting.discard(rank)
                return self._all_dropped(attempt)
        return []

    def _propose(self, now: float, event: Propose) -> list[Action]:
        self.number += 1
        self.attempt = Attempt(
            self.number, event.members, event.planned, event.asked, now + self._to_build, waiting=set(event.asked)
        )
        return [Build(self.number, event.asked, event.planned)]

    @property
    def _to_build(self) -> float:
        return self._limits.build if self.members else self._limits.first

    def _all_built(self, now: float, attempt: Attempt) -> list[Action]:
        if attempt.waiting:
            return []
        attempt.state, attempt.deadline = "ready", now + self._limits.enter
        attempt.waiting = set(attempt.members - attempt.began)
        return [Look(attempt.number, attempt.members)]

    def _began(self, attempt: Attempt, rank: int) -> list[Action]:
        """One that began shows that all were ready, so that all will, whatever was asked since."""
        attempt.began.add(rank)
        if attempt.state == "dropping":
            attempt.waiting.discard(rank)
        if attempt.members <= attempt.began:
            self.attempt, self.members = None, attempt.members
            return [Enter(attempt.number)]
        if attempt.state == "ready":
            attempt.waiting.discard(rank)
        return self._all_dropped(attempt) if attempt.state == "dropping" else []

    def _all_dropped(self, attempt: Attempt) -> list[Action]:
        if attempt.waiting:
            return []
        return self._void(attempt)

    def _lost(self, now: float, attempt: Attempt, rank: int) -> list[Action]:
        if rank not in attempt.asked:
            return []
        why = f"rank {rank} was lost"
        if rank in self.members or not attempt.planned:
            attempt.why = why
            return self._void(attempt)
        attempt.asked -= {rank}
        if attempt.state == "dropping":
            attempt.waiting.discard(rank)
            return self._all_dropped(attempt)
        return self._give_up(now, attempt, why)

    def _give_up(self, now: float, attempt: Attempt, why: str) -> list[Action]:
        attempt.why = why
        if not attempt.planned:
            return self._void(attempt)
        attempt.state, attempt.deadline = "dropping", now + self._limits.drop
        attempt.waiting = set(attempt.asked - attempt.began)
        return [Drop(attempt.number, frozenset(attempt.asked)), *self._all_dropped(attempt)]

    def _late(self, now: float, attempt: Attempt) -> list[Action]:
        ranks = ", ".join(map(str, sorted(attempt.waiting)))
        match attempt.state:
            case "proposed":
                return self._give_up(now, attempt, f"not built within {self._to_build:g} s by ranks {ranks}")
            case "ready":
                return self._give_up(now, attempt, f"no step begun within {self._limits.enter:g} s by ranks {ranks}")
        return self._void(attempt)

    def _void(self, attempt: Attempt) -> list[Action]:
        self.attempt = None
        silent = frozenset(attempt.waiting) if attempt.state == "dropping" else frozenset()
        return [Void(attempt.number, attempt.why, silent)]
