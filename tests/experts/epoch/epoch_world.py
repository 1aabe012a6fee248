"""A world of ranks and a supervisor for the epoch machine: pure events in virtual time under a seed, no asyncio, no threads.

The machine and the headers' agreement are production's. Calls and answers are late and overtake each other, ranks die,
connections are cut, deadlines are missed. A history takes about a millisecond. What must never be is noted in `wrong`.
"""

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from experts.epoch.agreement import Astray, GoTo, Row, agree
from experts.epoch.machine import (
    Action,
    Began,
    Broke,
    Build,
    Built,
    Drop,
    Dropped,
    Enter,
    EpochMachine,
    Event,
    Limits,
    Look,
    Lost,
    NotBuilt,
    Propose,
    Void,
)

RANKS = 4
FAULTS_END = 3.0  # s; all serve again some time later, or there is no progress
_END = 400.0
_STEP, _POLL = (
    0.2,
    0.3,
)  # s between two headers; between two looks at a rank's epoch; ten times as much after the faults
GENEROUS = Limits(60.0, 15.0, 10.0, 15.0)


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


class World:
    """One history: `run` it, and look at `wrong`."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.wrong: list[str] = []
        self.now = 0.0
        self.ranks = {rank: Rank(rank, 0) for rank in range(RANKS)}
        self.supervisor = Supervisor(self, missed=seed % 3 == 0)
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


class Supervisor:
    """Runs the machine: planned changes to `wanted`, recoveries after deaths and breaks. at_rest: all is as wanted."""

    def __init__(self, world: World, missed: bool) -> None:
        """missed: deadlines are too short while there are faults."""
        self.wanted: frozenset[int] = frozenset(range(RANKS))
        self.doing, self.since = "", 0.0
        self._world = world
        self._spoilt = Limits(60.0, world.rng.choice([0.3, 3.0]), world.rng.choice([0.05, 0.4]), 15.0)
        self._missed = missed
        self._machine = EpochMachine(GENEROUS)
        self.members: frozenset[int] = frozenset()  # of the epoch in use
        self._epoch = 0  # entered last
        self._broke = False  # the epoch in use, or there is none
        self._asked = 0  # attempts and recoveries so far, by which late answers are told apart

    @property
    def at_rest(self) -> bool:
        ranks = [self._world.ranks[rank] for rank in self.wanted]
        return (
            not self.doing and not self._broke and self.members == self.wanted
            and all(one.alive and not one.stopped and one.epoch == self._epoch and not one.holding for one in ranks)
        )  # fmt: skip

    def begin(self) -> None:
        self._propose(self.wanted, frozenset(), planned=False)

    def hear_of_death(self, rank: Rank) -> None:
        if self._world.ranks[rank.rank] is not rank:
            return
        if rank.rank in self.members:
            self._broke = True
        if self._machine.attempt is not None:
            self._tick([Lost(rank.rank)])
        self.go_on()

    def hear_of_break(self, rank: Rank) -> None:
        """A rank's word that its epoch broke; an old one says nothing."""
        if self._world.ranks[rank.rank] is rank and rank.alive and rank.holding and rank.rank in self.members:
            self._broke = True
            if self._machine.attempt is not None:
                self._tick([Broke()])
            self.go_on()

    def go_on(self) -> None:
        """Begin what is to be done next, where nothing is under way."""
        if self.doing:
            return
        if self._broke:
            self._recover()
        elif self.members != self.wanted:
            self._replace(self.wanted - self.members)
            self._propose(self.wanted, self.members - self.wanted, planned=True)

    def _set(self, doing: str) -> None:
        self.doing, self.since = doing, self._world.now

    def _replace(self, seats: Iterable[int]) -> None:
        """New processes on seats that had none, or had a dead one."""
        for seat in seats:
            old = self._world.ranks[seat]
            self._world.end(old)
            self._world.ranks[seat] = Rank(seat, old.incarnation + 1)

    def _recover(self) -> None:
        """Have the survivors hold, give the other seats new processes, then propose."""
        self._set("suspending")
        self._asked += 1
        turn, world = self._asked, self._world
        survivors = {rank for rank in self.members if world.ranks[rank].alive}
        waiting = set(survivors)

        def held(rank: int) -> None:
            waiting.discard(rank)
            if not waiting and turn == self._asked:
                self._asked += 1
                self._replace(rank for rank in self.wanted if rank not in survivors or not world.ranks[rank].alive)
                self._propose(self.wanted, frozenset(), planned=False)

        def late() -> None:
            for rank in list(waiting) if turn == self._asked else ():
                world.end(world.ranks[rank])
                held(rank)

        def ask(rank: Rank) -> None:
            if not rank.alive:
                held(rank.rank)
            elif not rank.stopped:
                world.suspend(rank, self._machine.number, lambda: world.later(lambda: held(rank.rank)))

        for rank in survivors:
            world.later(lambda one=world.ranks[rank]: ask(one))
        world.at(world.now + 15.0, late)
        if not survivors:
            held(-1)

    def _propose(self, members: frozenset[int], leaving: frozenset[int], planned: bool) -> None:
        self._set("planned change" if planned else "meeting")
        spoilt = self._missed and self._world.now < FAULTS_END and bool(self._machine.members)
        self._machine._limits = self._spoilt if spoilt else GENEROUS
        self._group: dict[int, Group] = {}
        self._proposed, self._planned = members, planned
        dead = [Lost(rank) for rank in members | leaving if not self._world.ranks[rank].alive]
        self._tick([Propose(members, planned, members | leaving), *dead])

    def _tick(self, events: list[Event]) -> None:
        actions = self._machine.tick(self._world.now, events)
        for action in actions:
            self._do(action)
        attempt = self._machine.attempt
        if attempt is not None and attempt.deadline > self._world.now:
            number, deadline = attempt.number, attempt.deadline
            self._world.at(deadline, lambda: self._still(number) and self._tick([]))

    def _still(self, number: int) -> bool:
        attempt = self._machine.attempt
        return attempt is not None and attempt.number == number and self._world.now >= attempt.deadline

    def _call(self, rank: int, work: Callable[[Rank], None]) -> None:
        """Have a rank do something, after a delay; a dead one is heard of."""
        one = self._world.ranks[rank]
        number = self._machine.number

        def arrive() -> None:
            if one.alive and not one.stopped:
                work(one)
            elif not one.alive:
                self._world.later(lambda: self._tick([Lost(rank)]) if number == self._machine.number else None)

        self._world.later(arrive)

    def _hear(self, event: Event) -> None:
        """Of what a rank did, after a delay."""
        self._world.later(lambda: self._tick([event]))

    def _do(self, action: Action) -> None:
        world = self._world
        match action:
            case Build(number, ranks, planned):
                group = Group(number, self._proposed)
                for rank in ranks:

                    def built(why: str, rank: int = rank) -> None:
                        self._hear(NotBuilt(number, rank, why) if why else Built(number, rank))

                    self._call(rank, lambda one, built=built: world.build(one, group, planned, built))
            case Look(number, ranks):
                for rank in ranks:
                    self._call(rank, lambda one: self._look(one, number))
            case Drop(number, ranks):
                for rank in ranks:

                    def told(epoch: int, rank: int = rank) -> None:
                        self._hear(Began(number, rank) if epoch == number else Dropped(number, rank))

                    self._call(rank, lambda one, told=told: world.drop(one, number, told))
            case Enter(number):
                self._entered(number)
            case Void(_, _, silent):
                self._voided(silent)

    def _look(self, rank: Rank, number: int) -> None:
        attempt = self._machine.attempt
        if attempt is None or attempt.number != number:
            return
        if not rank.alive:
            self._tick([Lost(rank.rank)])
        elif rank.epoch == number and not rank.stopped:
            self._hear(Began(number, rank.rank))
        else:
            self._world.at(self._world.now + self._world.slowed(_POLL), lambda: self._look(rank, number))

    def _entered(self, number: int) -> None:
        world = self._world
        for rank in self._proposed:
            one = world.ranks[rank]
            world.check(not one.alive or one.epoch >= number, f"epoch {number} is entered without rank {rank}")
        for rank in self.members - self._proposed:
            world.end(world.ranks[rank])
        self.members, self._epoch, self._broke = self._proposed, number, False
        self._finished()

    def _voided(self, silent: frozenset[int]) -> None:
        world = self._world
        for rank in silent:
            world.end(world.ranks[rank])
        if self._planned and not self._broke:
            for rank in self._proposed - self.members:
                world.end(world.ranks[rank])  # a newcomer
            if world.now < FAULTS_END:
                self.wanted = self.members
        if not self._planned:
            self._broke = True
        self._finished()

    def _finished(self) -> None:
        """Look at what happened meanwhile."""
        self._set("")
        ranks = [self._world.ranks[rank] for rank in self.members]
        self._broke = self._broke or any(not one.alive or one.holding for one in ranks)
        self._world.later(self.go_on, (0.0, 0.5))
