"""A supervisor for epoch_world: it runs production's EpochMachine through planned changes and recoveries."""

from collections.abc import Callable, Iterable

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
from tests.experts.epoch.epoch_world import FAULTS_END, POLL, RANKS, Group, Rank, World

GENEROUS = Limits(60.0, 15.0, 10.0, 15.0)


def wrong_in(seed: int) -> list[str]:
    """What went wrong in one history."""
    return World(seed, Supervisor).run()


class Supervisor:
    """Runs the machine: planned changes to `wanted`, recoveries after deaths and breaks. at_rest: all is as wanted."""

    def __init__(self, world: World) -> None:
        self.wanted: frozenset[int] = frozenset(range(RANKS))
        self.doing, self.since = "", 0.0
        self._world = world
        self._spoilt = Limits(60.0, world.rng.choice([0.3, 3.0]), world.rng.choice([0.05, 0.4]), 15.0)
        self._missed = world.seed % 3 == 0  # deadlines are too short while there are faults
        self._machine = EpochMachine(GENEROUS)
        self.members: frozenset[int] = frozenset()  # of the epoch in use
        self._epoch = 0  # entered last
        self._broke = False  # the epoch in use, or there is none
        self._turn = 0  # number of the recovery under way: answers to an earlier one are ignored

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
        self._turn += 1
        turn, world = self._turn, self._world
        survivors = {rank for rank in self.members if world.ranks[rank].alive}
        waiting = set(survivors)

        def held(rank: int) -> None:
            waiting.discard(rank)
            if not waiting and turn == self._turn:
                self._turn += 1
                self._replace(rank for rank in self.wanted if rank not in survivors or not world.ranks[rank].alive)
                self._propose(self.wanted, frozenset(), planned=False)

        def late() -> None:
            for rank in list(waiting) if turn == self._turn else ():
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
            self._world.at(self._world.now + self._world.slowed(POLL), lambda: self._look(rank, number))

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
