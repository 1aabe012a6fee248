"""Split: which copy of its expert each routed token goes to. Pure functions on numpy arrays.

Every rank that sees the same ids derives the same split; answers never depend on it.
Shape letters: T tokens, K top-k, E logical experts, R ranks, S slots per rank, C copies of all experts and "none".
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from experts.placement import IntArray, Placement

IdArray = npt.NDArray[np.integer]
SWEEPS = 2  # one pass pours every replicated expert; each further one takes it out and pours it again


@dataclass(frozen=True, slots=True, eq=False)
class Replicated:
    """One expert with copies on several ranks; copies at [start, start + len(ranks)) of SplitTable.copies."""

    expert: int
    start: int
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SplitTable:
    """One layer of a placement, laid out for splitting. Experts are shifted by one: row 0 stands for "none" (-1).

    lookup: [E+1] int32, first slot of each; copies: [C] int32 slots grouped by expert; starts: [E+1] where each
    expert's copies begin; first_rank: [E+1], rank of the first slot (R for "none"). A second copy on the same rank
    would not level anything and gets no tokens.
    """

    ranks: int
    slots_per_rank: int
    lookup: npt.NDArray[np.int32]
    copies: npt.NDArray[np.int32]
    starts: IntArray
    first_rank: IntArray
    replicated: tuple[Replicated, ...]

    @classmethod
    def of(cls, placement: Placement, layer: int) -> "SplitTable":
        """The table of one layer."""
        copies, starts, replicated = [-1], [0], []
        for expert, row in enumerate(placement.copies()[layer].tolist()):
            by_rank = {slot // placement.slots_per_rank: slot for slot in reversed(row) if slot >= 0}
            slots = sorted(by_rank.values())
            if len(slots) > 1:
                ranks = tuple(slot // placement.slots_per_rank for slot in slots)
                replicated.append(Replicated(expert, len(copies), ranks))
            starts.append(len(copies))
            copies.extend(slots)
        flat = np.array(copies, dtype=np.int32)
        begin = np.array(starts, dtype=np.int64)
        first_rank = (flat[begin] // placement.slots_per_rank).astype(np.int64)
        first_rank[0] = placement.ranks
        return cls(placement.ranks, placement.slots_per_rank, flat[begin], flat, begin, first_rank, tuple(replicated))


def split(table: SplitTable, ids: IdArray, turn: int = 0) -> npt.NDArray[np.int32]:
    """[T, K] slot for each routed pair; ids: [T, K] logical experts, -1 = none (stays -1).

    Tokens of a replicated expert are dealt to its copies in order, as many to each as levels the ranks' loads.
    turn rotates who gets the odd token, so that sources which split alone do not all favour the same rank.
    """
    shifted = ids.reshape(-1).astype(np.int64) + 1
    if not table.replicated:
        return table.lookup[shifted].reshape(ids.shape)
    counts = np.bincount(shifted, minlength=len(table.lookup))
    dealt = np.repeat(table.copies, quotas(table, counts, turn))
    order = np.argsort(shifted.astype(np.int16), kind="stable")  # 16 bits: numpy sorts them by radix
    slots = np.empty(len(shifted), dtype=np.int32)
    slots[order] = dealt
    return slots.reshape(ids.shape)


def quotas(table: SplitTable, counts: IntArray, turn: int = 0) -> IntArray:
    """[C] pairs each copy gets. counts: [E+1] pairs per expert, "none" first."""
    shares = np.zeros(len(table.copies), dtype=np.int64)
    shares[table.starts] = counts
    fixed = counts.copy()
    fixed[[one.expert + 1 for one in table.replicated]] = 0
    loads = np.bincount(table.first_rank, weights=fixed, minlength=table.ranks + 1).astype(np.int64).tolist()
    wanted = counts.tolist()
    busy = sorted((one for one in table.replicated if wanted[one.expert + 1]), key=lambda one: -wanted[one.expert + 1])
    poured: dict[int, list[int]] = {}
    for _ in range(SWEEPS if len(busy) > 1 else 1):
        for one in busy:
            for rank, share in zip(one.ranks, poured.get(one.expert, ()), strict=False):
                loads[rank] -= share
            parts = pour(loads, one.ranks, wanted[one.expert + 1], turn + one.expert)
            for rank, share in zip(one.ranks, parts, strict=True):
                loads[rank] += share
            poured[one.expert] = parts
    for one in busy:
        shares[one.start : one.start + len(one.ranks)] = poured[one.expert]
    return shares


def pour(loads: list[int], ranks: tuple[int, ...], count: int, turn: int) -> list[int]:
    """Shares of `count` pairs for distinct `ranks`: the lowest loads are filled up to one level (water-filling)."""
    width = len(ranks)
    order = sorted(range(width), key=lambda i: (loads[ranks[i]], (i + turn) % width))
    total, used = count, 0
    for used, i in enumerate(order, start=1):
        total += loads[ranks[i]]
        if used == width or total <= used * loads[ranks[order[used]]]:
            break
    level, odd = divmod(total, used)
    shares = [0] * width
    for place, i in enumerate(order[:used]):
        shares[i] = level - loads[ranks[i]] + (place < odd)
    return shares
