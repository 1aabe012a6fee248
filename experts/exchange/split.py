"""Split: which copy of its expert each routed token goes to. Pure functions on numpy arrays.

Every rank that sees the same ids derives the same split; answers never depend on it. The C form (kernels/split.c) and
the Python one (exchange/waterfill.py) give the same numbers.
Shape letters: T tokens, K top-k, E logical experts, R ranks, S slots per rank, C copies of replicated experts.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from experts.exchange.split_kernel import SplitKernel
from experts.exchange.waterfill import NORMAL, UNIT, Waterfill
from experts.kernels.loaded import loaded
from experts.placement import IntArray, Placement

IdArray = npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class SplitPolicy:
    """What the cost model says to the split; frozen, equal on all ranks of an epoch.

    floor: tokens that cost as much as reading a slot's weights; below that a second copy in use costs more than it levels
    speeds: relative speed of each rank, empty = all alike
    slack: how near the slowest rank must be to the least possible, as a share
    sweeps: how often every expert is poured at most
    """

    floor: float = 0.0
    speeds: tuple[float, ...] = ()
    slack: float = 0.002
    sweeps: int = 64

    def __post_init__(self) -> None:
        assert self.floor >= 0, self.floor
        assert all(speed > 0 for speed in self.speeds), self.speeds
        assert 0 < self.slack < 1, self.slack


@dataclass(frozen=True, slots=True, eq=False)
class SplitTable:
    """One layer of a placement, laid out for splitting. Experts are shifted by one: row 0 stands for "none" (-1).

    lookup: [E+1] int32, each expert's home slot, its only one or the one that whole experts go to
    waterfill: the replicated experts and their copies

    A second copy on the same rank would not level anything and gets no tokens.
    """

    lookup: npt.NDArray[np.int32]
    waterfill: Waterfill
    kernel: SplitKernel | None = field(repr=False)

    @classmethod
    def of(
        cls, placement: Placement, layer: int, policy: SplitPolicy | None = None, slots: IntArray | None = None
    ) -> "SplitTable":
        """The table of one layer; the C form where this process has its kernels. slots: [E, C], the layer's row of
        `placement.copies()`, where that is at hand."""
        policy = policy or SplitPolicy()
        assert len(policy.speeds) in (0, placement.ranks), (policy.speeds, placement.ranks)
        copies = _by_rank(placement.copies()[layer] if slots is None else slots, placement.slots_per_rank)
        homes = _homes(copies, placement)
        lookup = np.array([-1, *homes], dtype=np.int32)
        replicated = [expert for expert, slots in enumerate(copies) if len(slots) > 1]
        # the home comes first, so that "all on the first copy" is the split without copies
        held = [[homes[e], *(slot for slot in copies[e] if slot != homes[e])] for e in replicated]
        waterfill = Waterfill(
            ranks=placement.ranks,
            lookup=lookup,
            home=np.array([placement.ranks, *(slot // placement.slots_per_rank for slot in homes)], dtype=np.int32),
            expert=np.array([e + 1 for e in replicated], dtype=np.int32),
            start=np.cumsum([0, *map(len, held)]).astype(np.int32),
            slot=np.array([slot for row in held for slot in row], dtype=np.int32),
            rank=np.array([slot // placement.slots_per_rank for row in held for slot in row], dtype=np.int32),
            speed=np.array([round(s * NORMAL) for s in policy.speeds or (1.0,) * placement.ranks], dtype=np.int64),
            floor=round(policy.floor * UNIT),
            slack=round(1 / policy.slack),
            sweeps=policy.sweeps,
        )
        kernels = loaded()
        kernel = None if kernels is None else SplitKernel(waterfill, kernels.split, kernels.quotas)
        return cls(lookup, waterfill, kernel)


def split(table: SplitTable, ids: IdArray, turn: int = 0) -> npt.NDArray[np.int32]:
    """[T, K] slot for each routed pair.

    ids: [T, K] logical experts, -1 = none (stays -1)
    turn: rotates who gets the odd token, so that sources which split alone do not all favour the same rank

    Tokens of a replicated expert are dealt to its copies in order, as many to each as levels the ranks' times.
    """
    if table.kernel is not None:
        return table.kernel.split(np.ascontiguousarray(ids, dtype=np.int16), turn)
    shifted = ids.reshape(-1).astype(np.int64) + 1
    slots = table.lookup[shifted]
    if len(table.waterfill.expert):
        quota = table.waterfill.quotas(np.bincount(shifted, minlength=len(table.lookup)), turn)
        for i, expert in enumerate(table.waterfill.expert):
            mine = slice(table.waterfill.start[i], table.waterfill.start[i + 1])
            slots[shifted == expert] = np.repeat(table.waterfill.slot[mine], quota[mine])
    return slots.reshape(ids.shape)


def to_home(table: SplitTable, ids: IdArray) -> npt.NDArray[np.int32]:
    """[T, K] home slot for each routed pair: what sources do that split alone while reading weights is the cost."""
    homes: npt.NDArray[np.int32] = table.lookup[ids.astype(np.int64) + 1]
    return homes


def quotas(table: SplitTable, counts: IntArray, turn: int = 0) -> IntArray:
    """[C] pairs each copy of a replicated expert gets. counts: [E+1] pairs per expert, "none" first."""
    if table.kernel is not None:
        return table.kernel.quotas(np.ascontiguousarray(counts, dtype=np.int64), turn)
    return table.waterfill.quotas(counts, turn)


def rank_tokens(table: SplitTable, counts: IntArray, turn: int = 0) -> IntArray:
    """[R] pairs each rank gets. counts: [E+1] pairs per expert, "none" first."""
    fill = table.waterfill
    fixed = counts.copy()
    fixed[fill.expert] = 0
    loads = np.bincount(fill.home, weights=fixed, minlength=fill.ranks + 1)[: fill.ranks].astype(np.int64)
    if len(fill.expert):
        np.add.at(loads, fill.rank, quotas(table, counts, turn))
    return loads


def _by_rank(copies: IntArray, width: int) -> list[list[int]]:
    """Per expert, its slots in rising order, one a rank.

    copies: [E, C], padded with -1
    width: slots of a rank
    """
    out = []
    for row in copies.tolist():
        by_rank = {slot // width: slot for slot in reversed(row) if slot >= 0}
        out.append(sorted(by_rank.values()))
    return out


def _homes(copies: list[list[int]], placement: Placement) -> list[int]:
    """One copy of each expert, so that no rank is home to more of them than it must be: a matching by augmenting paths.

    With few tokens every home in use costs the same, the reading of its weights, and this is the quickest choice.
    """
    width = placement.slots_per_rank
    room = -(-len(copies) // placement.ranks)
    homes = [-1] * len(copies)
    guests: list[list[int]] = [[] for _ in range(placement.ranks)]

    def settle(expert: int, seen: set[int]) -> bool:
        for slot in copies[expert]:
            rank = slot // width
            if rank in seen:
                continue
            seen.add(rank)
            if len(guests[rank]) >= room and not any(settle(guest, seen) for guest in list(guests[rank])):
                continue
            if homes[expert] >= 0:
                guests[homes[expert] // width].remove(expert)
            homes[expert] = slot
            guests[rank].append(expert)
            return True
        return False

    for expert in sorted(range(len(copies)), key=lambda e: (len(copies[e]), e)):
        while not settle(expert, set()):
            room += 1
    return homes
