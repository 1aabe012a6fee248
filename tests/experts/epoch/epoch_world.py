"""A world of ranks for the epoch machine (epoch_supervisor runs it): pure events in virtual time under a seed.

The machine and the headers' agreement are production's. Calls and answers are late and overtake each other, ranks die,
connections are cut, deadlines are missed. A history takes about a millisecond. What must never be is noted in `wrong`.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from experts.epoch.agreement import Astray, GoTo, Row, agree

RANKS = 4
FAULTS_END = 3.0  # s; all serve again some time later, or there is no progress
_END = 400.0
# s between two headers; between two looks at a rank's epoch; ten times as much after the faults
_STEP, POLL = 0.2, 0.3


@dataclass(eq=False, slots=True)
class Group:
    """Members of an epoch, who meet and send headers. left: ranks that died or closed their end, which breaks it."""

    number: int
    members: frozenset[int]
    came: set[int] = field(default_factory=set)
    left: set[int] = field(default_factory=set)
    rows: dict[int, Row] = field(default_factory=dict)  # of the header under way
    meeting: list[Callable[[], None]] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Rank:
    """A process on a seat. holding: its epoch broke, and it waits; following: the epoch that it is ready for."""

    rank: int
    incarnation: int
    alive: bool = True
    stopped: bool = False
    epoch: int = 0
    step: int = 0
    holding: bool = True
    group: Group | None = None
    following: Group | None = None
    meeting: Group | None = None  # that it waits for
    in_header: bool = False
    dropped: int = 0
    given_up: int = 0
    gave_up: set[int] = field(default_factory=set)
    after_header: list[Callable[[], None]] = field(default_factory=list)
    when_holding: list[Callable[[], None]] = field(default_factory=list)


class Leader(Protocol):
    """The supervisor, as the world sees it. at_rest: all is as wanted; doing, since: what is under way."""

    members: frozenset[int]
    wanted: frozenset[int]
    doing: str
    since: float

    @property
    def at_rest(self) -> bool: ...

    def begin(self) -> None: ...
    def go_on(self) -> None: ...
    def hear_of_death(self, rank: Rank) -> None: ...
    def hear_of_break(self, rank: Rank) -> None: ...


class World:
    """One history: `run` it, and look at `wrong`."""

    def __init__(self, seed: int, led_by: Callable[["World"], Leader]) -> None:
        self.rng = random.Random(seed)
        self.wrong: list[str] = []
        self.now = 0.0
        self.ranks = {rank: Rank(rank, 0) for rank in range(RANKS)}
        self.seed = seed
        self.supervisor = led_by(self)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._entered: dict[int, tuple[frozenset[int], dict[int, int]]] = {}

    def run(self) -> list[str]:
        """What went wrong."""
        self.supervisor.begin()
        for _ in range(self.rng.randrange(1, 6)):
            self.at(
                self.rng.uniform(0.2, FAULTS_END), self.rng.choice([self._die, self._stop, self._cut, self._change])
            )
        while self._heap and self.now < _END and not (self.now > FAULTS_END and self.supervisor.at_rest):
            self.now, _, act = heapq.heappop(self._heap)
            act()
        if not self.supervisor.at_rest:
            self.wrong.append(f"no progress: {self.supervisor.doing} since {self.supervisor.since:.1f}")
        return self.wrong

    def at(self, when: float, act: Callable[[], None]) -> None:
        """Do something then."""
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, act))

    def later(self, act: Callable[[], None], delays: tuple[float, ...] = (0.0, 0.01, 0.05, 0.4)) -> None:
        """Do something after one of some delays."""
        self.at(self.now + self.rng.choice(delays), act)

    def slowed(self, seconds: float) -> float:
        """A period, longer once there are no faults any more: what is left is waiting."""
        return seconds if self.now < FAULTS_END else 10 * seconds

    def check(self, right: bool, what: str) -> None:
        if not right:
            self.wrong.append(f"at {self.now:.2f}: {what}")

    def _die(self) -> None:
        self.end(self.ranks[self.rng.randrange(1, RANKS)])

    def _stop(self) -> None:
        """SIGSTOP: it answers nothing and steps no more."""
        rank = self.ranks[self.rng.randrange(1, RANKS)]
        rank.stopped = True
        self._watch(rank)

    def _watch(self, rank: Rank) -> None:
        """After a while a rank that serves and does not answer is ended; of others nobody knows."""

        def look() -> None:
            if rank.rank in self.supervisor.members and self.ranks[rank.rank] is rank:
                self.end(rank)
            elif rank.alive:
                self._watch(rank)

        self.at(self.now + self.rng.choice([5.0, 30.0]), look)

    def end(self, rank: Rank) -> None:
        """SIGKILL; the supervisor hears of it later."""
        if rank.alive:
            rank.alive = False
            self._leave(rank)
            self.later(lambda: self.supervisor.hear_of_death(rank))

    def _cut(self) -> None:
        """A connection breaks, though nobody is gone."""
        rank = self.ranks[self.rng.randrange(RANKS)]
        if rank.alive and rank.group is not None:
            self._leave(rank)
            self._break(rank, rank.group)

    def _change(self) -> None:
        self.supervisor.wanted = frozenset([0, *self.rng.sample(range(1, RANKS), self.rng.randrange(1, RANKS))])
        self.supervisor.go_on()

    # What ranks do.

    def meet(self, rank: Rank, group: Group, done: Callable[[bool], None]) -> None:
        """Wait for all members of a group. done: gets whether they came."""
        group.came.add(rank.rank)
        rank.meeting = group
        over = False

        def look(late: bool = False) -> None:
            nonlocal over
            if over or not (late or group.left or group.came >= group.members):
                return
            over = True
            if rank.meeting is group:
                rank.meeting = None
            if late:
                group.left.add(rank.rank)
            done(not late and not group.left)

        group.meeting.append(look)
        self.at(self.now + self.rng.choice([2.0, 10.0]), lambda: look(late=True))
        for one in list(group.meeting):
            one()

    def enter(self, rank: Rank, group: Group) -> None:
        number, seats = group.number, {other: self.ranks[other].incarnation for other in group.members}
        self.check(number not in rank.gave_up, f"rank {rank.rank} enters epoch {number}, which it gave up")
        self.check(number > rank.epoch, f"rank {rank.rank} goes from epoch {rank.epoch} to {number}")
        known = self._entered.setdefault(number, (group.members, seats))
        self.check(known[0] == group.members, f"epoch {number} has members {set(known[0])} and {set(group.members)}")
        rank.epoch, rank.step, rank.group, rank.holding = number, 0, group, False
        if rank.following is group:
            rank.following = None
        self.later(lambda: self._open(rank, group))

    def _open(self, rank: Rank, group: Group) -> None:
        """Bring a row to the next header."""
        if rank.stopped or not rank.alive or rank.group is not group or rank.holding:
            return
        if group.left:
            self._break(rank, group)
            return
        ready = rank.epoch if rank.following is None else rank.following.number
        group.rows[rank.rank] = Row(rank.epoch, rank.step, 0, 1, 0, 0, ready)
        rank.in_header = True
        self.check(rank.rank in group.members, f"rank {rank.rank} takes part in epoch {group.number} of others")
        if group.members <= group.rows.keys():
            rows = [group.rows[member] for member in sorted(group.members)]
            group.rows = {}
            for member in group.members:
                self.later(lambda member=member: self._answered(self.ranks[member], group, rows), (0.0, 0.01, 0.1))

    def _answered(self, rank: Rank, group: Group, rows: list[Row]) -> None:
        """All rows are there; not all hear of a header that breaks at its end."""
        if rank.stopped or not rank.alive or rank.group is not group or rank.holding:
            return
        if rank.rank in group.left or (group.left and self.rng.random() < 0.5):
            self._break(rank, group)
            return
        answer = agree(rows, rank.epoch, rank.step, 64)
        if isinstance(answer, Astray):
            self._break(rank, group)
        elif isinstance(answer, GoTo):
            following = rank.following
            self.check(following is not None, f"rank {rank.rank} has dropped the epoch that all go to")
            if following is None or rank.rank not in following.members:
                rank.group, rank.following = None, None
            else:
                self.enter(rank, following)
            self._end_header(rank)
        else:
            rank.step += 1
            self._end_header(rank)
            self.at(self.now + self.slowed(_STEP), lambda: self._open(rank, group))

    def _end_header(self, rank: Rank) -> None:
        rank.in_header = False
        acts, rank.after_header = rank.after_header, []
        for act in acts:
            act()

    def _leave(self, rank: Rank) -> None:
        """Close this rank's ends, which breaks the groups of the others."""
        for group in (rank.group, rank.following, None if rank.alive else rank.meeting):
            if group is not None:
                group.left.add(rank.rank)
                for look in list(group.meeting):
                    look()
                for member in group.members:
                    other = self.ranks[member]
                    if other.group is group and other is not rank:
                        self.later(lambda other=other, group=group: self._break(other, group), (0.0, 0.02, 0.3))
        rank.following = None

    def _break(self, rank: Rank, group: Group) -> None:
        """The rank's epoch breaks: it leaves, and holds."""
        if rank.stopped or not rank.alive or rank.holding or rank.group is not group:
            return
        self._leave(rank)
        rank.holding = True
        self._end_header(rank)
        acts, rank.when_holding = rank.when_holding, []
        for act in acts:
            act()
        self.later(lambda: self.supervisor.hear_of_break(rank))

    def suspend(self, rank: Rank, given_up: int, done: Callable[[], None]) -> None:
        """Break the rank's epoch, if it has not broken; none up to `given_up` is entered from now on. done: it holds."""
        rank.following, rank.given_up = None, max(rank.given_up, given_up)
        if rank.group is None:  # it was left out of an epoch, and its steps have ended
            self.end(rank)
        if rank.holding or not rank.alive:
            done()
            return
        assert rank.group is not None
        rank.when_holding.append(done)
        group = rank.group
        group.left.add(rank.rank)
        self.later(lambda: self._break(rank, group))

    def drop(self, rank: Rank, number: int, done: Callable[[int], None]) -> None:
        """Forget an epoch. done: gets the epoch that the rank is in."""
        rank.dropped = max(rank.dropped, number)

        def forget() -> None:
            rank.following = None
            if rank.epoch != number:
                rank.gave_up.add(number)
            done(rank.epoch)

        if rank.in_header and rank.following is not None:
            rank.after_header.append(forget)
        else:
            forget()

    def build(self, rank: Rank, group: Group, planned: bool, done: Callable[[str], None]) -> None:
        """Build this rank's end. done: gets why that failed, or nothing."""

        def met(came: bool) -> None:
            if rank.stopped or not rank.alive:
                return
            if not came:
                done("not all came")
            elif group.number <= max(rank.dropped, rank.given_up, rank.epoch):
                done("given up meanwhile")
            elif not planned or rank.epoch == 0:
                self.check(rank.holding, f"rank {rank.rank} is put into epoch {group.number} while it steps")
                self.enter(rank, group)
                done("")
            elif rank.holding:
                done("its epoch broke")
            else:
                rank.following = group
                done("")

        if rank.rank in group.members:
            self.meet(rank, group, met)
        else:
            met(True)
