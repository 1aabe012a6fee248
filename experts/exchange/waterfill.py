"""Water-filling in whole numbers: the plain form of kernels/split.c, number for number, and its fallback.

Pour one expert at a time: take its tokens out of its ranks, fill them up to one level. This converges to the division
of least squares, which is also the one with the quickest slowest rank (the reachable rank loads form a base
polytope). Tokens count in 1/UNIT; time is tokens at normal speed; a slot in use costs at least `floor`.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

UNIT = 1024  # parts of a token
NORMAL = 1 << 20  # speed 1

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Waterfill:
    """A layer's replicated experts. Experts are shifted by one: row 0 of lookup and home stands for "none".

    lookup: [E+1] home slot
    home: [E+1] its rank (R for none)
    expert: [n] replicated ones, shifted; copies of the i-th at [start[i], start[i+1]) of slot and rank, the home first
    speed: [R] in 1/NORMAL
    floor: in 1/UNIT
    slack: stop when the slowest rank is within a slack-th of the least possible, or after `sweeps`
    """

    ranks: int
    lookup: Int32
    home: Int32
    expert: Int32
    start: Int32
    slot: Int32
    rank: Int32
    speed: Int64
    floor: int
    slack: int
    sweeps: int

    def quotas(self, counts: Int64, turn: int) -> Int64:
        """[C] tokens each copy gets. counts: [E+1] tokens per expert, "none" first."""
        return _Pouring(self, counts).quotas(turn)


class _Pouring:
    """One division under way.

    time: [R+1]
    share: [C]
    """

    def __init__(self, fill: Waterfill, counts: Int64) -> None:
        self.speed: list[int] = fill.speed.tolist()
        self.even = all(speed == NORMAL for speed in self.speed)
        self.floor, self.slack, self.sweeps, self.ranks = fill.floor, fill.slack, fill.sweeps, fill.ranks
        starts = fill.start.tolist()
        self.copies = [fill.rank[a:b].tolist() for a, b in pairwise(starts)]
        self.count = [int(counts[e]) * UNIT for e in fill.expert]
        self.share = [[0] * len(ranks) for ranks in self.copies]
        self.time = [0] * (fill.ranks + 1)
        for rank, count in zip(fill.home.tolist()[1:], counts.tolist()[1:], strict=True):
            self.time[rank] += self._cost(rank, count * UNIT)
        self.at_home = max(self.time[: fill.ranks], default=0)
        for ranks, tokens in zip(self.copies, self.count, strict=True):
            self.time[ranks[0]] -= self._cost(ranks[0], tokens)

    def quotas(self, turn: int) -> Int64:
        order = sorted(range(len(self.count)), key=lambda i: -self.count[i])
        for done in range(self.sweeps):
            before = self._slowest()
            for i in order:
                if self.count[i]:
                    self._pour(i)
            if len(order) <= 1 or (self.floor and done and self._slowest() >= before):
                break
            if not self.floor and done & 1 and self._proved():
                break
        if self.floor and self.at_home < self._slowest():
            self.share = [[tokens] + [0] * (len(s) - 1) for tokens, s in zip(self.count, self.share, strict=True)]
        return self._rounded(turn)

    def _pour(self, i: int) -> None:
        ranks, tokens, time = self.copies[i], self.count[i], self.time
        for rank, part in zip(ranks, self.share[i], strict=True):
            time[rank] -= self._cost(rank, part)
        if len(ranks) == 2 and self.even and self.floor == 0:
            twice = tokens + time[ranks[1]] - time[ranks[0]]
            first = 0 if twice <= 0 else tokens if twice >= 2 * tokens else twice // 2
            self.share[i] = [first, tokens - first]
        else:
            self.share[i] = self._parts(ranks, tokens)
        for rank, part in zip(ranks, self.share[i], strict=True):
            time[rank] += self._cost(rank, part)

    def _parts(self, ranks: list[int], tokens: int) -> list[int]:
        order = sorted(range(len(ranks)), key=lambda j: self.time[ranks[j]] + self._cost(ranks[j], self.floor))
        used = self._used([ranks[j] for j in order], tokens)
        level, left = self._level([ranks[j] for j in order[:used]], tokens), tokens
        parts = [0] * len(ranks)
        for place, j in enumerate(order[:used]):
            up = level - self.time[ranks[j]]
            part = self._tokens(ranks[j], up) if up > 0 else 0
            parts[j] = left if part > left or place == used - 1 else part
            left -= parts[j]
        return parts

    def _used(self, ranks: list[int], tokens: int) -> int:
        """How many of the ordered ranks to fill: those below the level or, with a floor, the least sum of squares."""
        best, least = 1, 0
        for used in range(1, len(ranks) + 1):
            level = self._level(ranks[:used], tokens)
            if used > 1 and level <= self.time[ranks[used - 1]]:
                break
            if self.floor == 0:
                best = used
                continue
            change = 0
            for rank in ranks[:used]:
                before = self.time[rank] // UNIT
                more = self._cost(rank, self._tokens(rank, max(level - self.time[rank], 0))) // UNIT
                change += more * (2 * before + more)
            if used == 1 or change < least:
                best, least = used, change
        return best

    def _level(self, ranks: list[int], tokens: int) -> int:
        if self.even:
            return (tokens + sum(self.time[rank] for rank in ranks)) // len(ranks)
        filled = sum(self.time[rank] * self.speed[rank] for rank in ranks)
        return (tokens * NORMAL + filled) // sum(self.speed[rank] for rank in ranks)

    def _cost(self, rank: int, tokens: int) -> int:
        return self._duration(rank, max(tokens, self.floor)) if tokens > 0 else 0

    def _duration(self, rank: int, tokens: int) -> int:
        return tokens if self.even else tokens * NORMAL // self.speed[rank]

    def _tokens(self, rank: int, time: int) -> int:
        return time if self.even else time * self.speed[rank] // NORMAL

    def _slowest(self) -> int:
        return max(self.time[: self.ranks], default=0)

    def _proved(self) -> bool:
        """Whether no division is quicker by more than the slack: what lies on the closed set can't leave it."""
        most = self._slowest()
        inside = {rank for rank in range(self.ranks) if self.time[rank] == most}
        grew = True
        while grew:
            grew = False
            for ranks, shares in zip(self.copies, self.share, strict=True):
                if any(part and r in inside for r, part in zip(ranks, shares, strict=True)) and not inside.issuperset(
                    ranks
                ):
                    inside.update(ranks)
                    grew = True
        weights = {rank: 1 if self.even else self.speed[rank] for rank in inside}
        least = sum(self.time[rank] * weight for rank, weight in weights.items()) // sum(weights.values())
        return most - least <= max(most // self.slack, UNIT // 2)

    def _rounded(self, turn: int) -> Int64:
        """Whole tokens: rounded down, what is left over to the ranks that rounding left most idle."""
        behind = [0] * self.ranks
        for ranks, shares in zip(self.copies, self.share, strict=True):
            for rank, part in zip(ranks, shares, strict=True):
                behind[rank] += part % UNIT
        out: list[int] = []
        for i, (ranks, shares) in enumerate(zip(self.copies, self.share, strict=True)):
            whole = [part // UNIT for part in shares]
            for _ in range(self.count[i] // UNIT - sum(whole)):
                places = [(j + turn + i) % len(ranks) for j in range(len(ranks))]
                best = max((j for j in places if shares[j]), key=lambda j: behind[ranks[j]])
                whole[best] += 1
                behind[ranks[best]] -= UNIT
            out += whole
        return np.array(out, dtype=np.int64)
