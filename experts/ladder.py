"""Ladder: how many threads one size of work gets, by what it took. Pure: no clock, no thread, no torch.

Whether threads pay depends on what else runs: on a quiet machine two halve a product of 0.2 ms; beside a program that
keeps the cores busy each of its barriers waits for a thread that has lost its core, some milliseconds. Nothing
in the work itself shows which, so it is measured: work is counted over spells of `SPELL` seconds, the quickest
number of threads is used, and the others are tried for a spell now and then, by turns. Tries get `SHARE` of the
time, whatever they turn out to cost.
"""

import math

SPELL = 0.05  # s of work that a number of threads is judged by: several turns of the machine's scheduler
SETTLE = 0.01  # s after a change that are not judged: a thread that wakes needs some to find a core of its own
WARM = 0.3  # s at first that are not judged: fresh memory and cold caches cost as much as stalls do
SHARE = 0.02  # of the time, for tries
LONGEST = 30.0  # s of work until the next try, however long the last one took
_UNKNOWN = math.inf
GAIN = 0.95  # more threads are taken when they cost less than this times fewer; fewer when they cost less


class Ladder:
    """One size of work. Its rungs are numbers of threads."""

    def __init__(self, rungs: tuple[int, ...]) -> None:
        """rungs: rising; it starts with the last."""
        self._rungs = rungs
        self._at = len(self._rungs) - 1
        self._trying = self._at
        self._costs = [_UNKNOWN] * len(self._rungs)  # s per unit of work
        self._credit = 0.0  # s of tries that are paid for; below 0 none is made
        self._used = [0] * len(self._rungs)  # number of the spell that each rung was used in last, 0 for none
        self._spells = 0
        self._long = False  # whether the first piece took a spell
        self._spent = 0.0  # s of this spell, of which _seconds are judged
        self._settling = WARM  # s that are still not judged
        self._seconds = self._work = 0.0

    @property
    def threads(self) -> int:
        """How many the next piece is to use."""
        return self._rungs[self._trying]

    def note(self, seconds: float, work: float) -> None:
        """A piece of work took `seconds` with `threads`. work: in any unit, the same for all pieces."""
        if len(self._rungs) == 1:
            return
        self._spent += seconds
        if self._settling > 0.0 and seconds < SPELL:
            self._settling -= seconds
            return
        if seconds >= SPELL and self._spells == 0:
            self._credit, self._long = -2 * seconds, True  # no stall matters: the first try is paid for beforehand
        self._seconds += seconds
        self._work += work
        if self._seconds >= SPELL:
            before = self._trying
            self._judge(self._seconds / self._work)
            self._seconds = self._work = self._spent = 0.0
            self._settling = SETTLE if self._trying != before else 0.0

    def _judge(self, cost: float) -> None:
        """End a spell: remember what it cost, take the quickest rung, and see whether another one is tried."""
        seen = self._trying
        self._spells += 1
        self._used[seen] = self._spells
        if seen == self._at and self._costs[seen] != _UNKNOWN:
            self._costs[seen] = (self._costs[seen] + cost) / 2
        else:
            self._costs[seen] = cost
        if seen != self._at:
            self._credit -= self._spent
        self._credit = max(min(self._credit + SHARE * self._spent, 0.0), -SHARE * LONGEST)
        self._at = self._trying = self._quickest()
        other = min((rung for rung in range(len(self._rungs)) if rung != self._at), key=lambda rung: self._used[rung])
        if self._credit >= 0.0 or (self._costs[other] == _UNKNOWN and not self._long):
            self._trying = other

    def _quickest(self) -> int:
        """The best of the rungs that are better than the present one, else that one."""
        present = self._costs[self._at]
        limits = [present if rung < self._at else GAIN * present for rung in range(len(self._rungs))]
        better = [(cost, rung) for rung, cost in enumerate(self._costs) if cost < limits[rung]]
        return min(better)[1] if better else self._at


def rungs(most: int) -> tuple[int, ...]:
    """Numbers of threads up to `most`, which is at least 1: powers of two, and `most` itself."""
    return (*(1 << i for i in range((most - 1).bit_length())), most)
