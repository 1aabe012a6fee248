"""Placement: which logical expert each slot of each layer holds. Its rules, first layout, difference and file.

Knows numpy only: no torch, no ranks' processes, no weights.
Shape letters: L layers, E logical experts, R ranks, S slots per rank, C most copies of any expert.
"""

import zipfile
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from experts.errors import UserError

EMPTY = -1  # a slot that holds nothing
ABSENT = -2  # a seat of the table that the rank does not have

IntArray = npt.NDArray[np.int64]


class Change(NamedTuple):
    """One slot whose content differs between two placements; old and new are logical experts, EMPTY or ABSENT."""

    layer: int
    slot: int
    old: int
    new: int


@dataclass(frozen=True, eq=False)
class Placement:
    """slot_expert: int64 [L, R*S], the logical expert in each slot; rank r owns slots r*S .. r*S+S-1 in every layer.

    Holds its rules from construction on: every expert 0 .. E-1 has at least one slot in every layer, where E is
    one more than the largest expert named. Breaking one is a UserError that names `where`.
    """

    version: int
    ranks: int
    slots_per_rank: int
    slot_expert: IntArray
    where: str = "placement"

    def __post_init__(self) -> None:
        _check_table(self.slot_expert, self.ranks, self.slots_per_rank, self.where)
        own = np.array(self.slot_expert, dtype=np.int64, order="C")
        own.setflags(write=False)
        object.__setattr__(self, "slot_expert", own)
        _check_coverage(own, self.experts, self.where)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Placement):
            return NotImplemented
        mine = (self.version, self.ranks, self.slots_per_rank)
        theirs = (other.version, other.ranks, other.slots_per_rank)
        return mine == theirs and bool(np.array_equal(self.slot_expert, other.slot_expert))

    __hash__ = None  # type: ignore[assignment]

    @property
    def layers(self) -> int:
        """L, the number of MoE layers."""
        return int(self.slot_expert.shape[0])

    @property
    def experts(self) -> int:
        """E, the number of logical experts of a layer."""
        return int(self.slot_expert.max()) + 1

    @classmethod
    def first(cls, layers: int, experts: int, ranks: int, slots_per_rank: int, version: int = 0) -> "Placement":
        """The layout before any load is known: contiguous blocks of experts, then replicas on other ranks.

        Replicas go to the experts with the fewest copies so far, never beside another copy of the same expert;
        slots that could only hold such a second copy stay empty. Works for any R and S with R*S >= E.
        Raises UserError if there are fewer slots than experts.
        """
        if ranks < 1 or slots_per_rank < 1:
            raise UserError(f"{ranks} ranks with {slots_per_rank} slots each", "at least one of each", "placement")
        if ranks * slots_per_rank < experts:
            raise UserError(
                f"{ranks * slots_per_rank} slots", f"at least {experts} (one per expert)", "placement of experts"
            )
        table = np.full((layers, ranks * slots_per_rank), EMPTY, dtype=np.int64)
        for layer in range(layers):
            table[layer] = _first_layer(layer, experts, ranks, slots_per_rank)
        return cls(version, ranks, slots_per_rank, table)

    def check_fits(self, layers: int, experts: int) -> None:
        """Raise UserError unless this placement is one for a model of `layers` MoE layers of `experts` experts."""
        if self.layers != layers:
            raise UserError(f"{self.layers} layers", f"{layers}, the model's MoE layers", self.where)
        slots = int(np.count_nonzero(self.slot_expert[0] != ABSENT))
        if slots < experts:
            raise UserError(f"{slots} slots", f"at least {experts} (one per expert)", self.where)
        if self.experts != experts:
            raise UserError(f"{self.experts} experts", f"{experts}, the model's experts per layer", self.where)

    def local(self, rank: int) -> IntArray:
        """[L, S] logical expert in each slot of `rank`."""
        return self.slot_expert[:, rank * self.slots_per_rank : (rank + 1) * self.slots_per_rank]

    @property
    def ranks_used(self) -> set[int]:
        """Ranks that hold an expert in some layer."""
        slots = np.flatnonzero((self.slot_expert >= 0).any(axis=0))
        return set((slots // self.slots_per_rank).tolist())

    def covers_without(self, ranks: Collection[int]) -> bool:
        """Whether every expert has a slot on another rank than these."""
        kept = _masked(self.slot_expert, self.slots_per_rank, ranks)
        return all(len(np.unique(row[row >= 0])) == self.experts for row in kept)

    def without(self, ranks: Collection[int], version: int) -> "Placement":
        """The same placement with these ranks' slots empty. Raises UserError where an expert is only there."""
        table = _masked(self.slot_expert, self.slots_per_rank, ranks)
        return replace(self, version=version, slot_expert=table)

    def replicas(self) -> IntArray:
        """[L, E] how many slots hold each expert."""
        counts = np.zeros((self.layers, self.experts), dtype=np.int64)
        layer, slot = np.nonzero(self.slot_expert >= 0)
        np.add.at(counts, (layer, self.slot_expert[layer, slot]), 1)
        return counts

    def sole_copies(self) -> dict[int, list[tuple[int, int]]]:
        """Of each rank that has some, the (layer, expert) pairs that no other rank holds."""
        found: dict[int, list[tuple[int, int]]] = {}
        for layer, row in enumerate(self.slot_expert.reshape(self.layers, self.ranks, self.slots_per_rank)):
            holders = np.zeros((self.ranks, self.experts), dtype=np.bool_)
            rank, slot = np.nonzero(row >= 0)
            holders[rank, row[rank, slot]] = True
            alone, holder = np.flatnonzero(holders.sum(axis=0) == 1), holders.argmax(axis=0)
            for owner, expert in zip(holder[alone].tolist(), alone.tolist(), strict=True):
                found.setdefault(owner, []).append((layer, expert))
        return found

    def copies(self) -> IntArray:
        """[L, E, C] slots that hold each expert, in rising order, padded with -1."""
        counts = self.replicas()
        table = np.full((*counts.shape, int(counts.max())), -1, dtype=np.int64)
        for layer, row in enumerate(self.slot_expert):
            order = np.argsort(row, kind="stable")
            order = order[row[order] >= 0]
            experts = row[order]
            starts = np.concatenate(([0], np.cumsum(counts[layer])))
            table[layer, experts, np.arange(len(order)) - starts[experts]] = order
        return table

    def diff(self, newer: "Placement") -> list[Change]:
        """Slots whose content changes from this placement to `newer`, which has the same shape."""
        assert self.slot_expert.shape == newer.slot_expert.shape, (self.slot_expert.shape, newer.slot_expert.shape)
        layer, slot = np.nonzero(self.slot_expert != newer.slot_expert)
        old, new = self.slot_expert[layer, slot], newer.slot_expert[layer, slot]
        return [Change(*map(int, change)) for change in zip(layer, slot, old, new, strict=True)]

    def save(self, path: Path) -> None:
        """Write the table as npz, key `slot_expert`."""
        with open(path, "wb") as file:
            np.savez_compressed(file, slot_expert=self.slot_expert)

    @classmethod
    def load(cls, path: Path, ranks: int, version: int = 0) -> "Placement":
        """Read a table written by `save` for `ranks` ranks. Raises UserError for a file that is not one."""
        table = _read_table(path)
        where = f"placement file {path}"
        if table.ndim != 2 or table.shape[1] == 0 or table.shape[1] % ranks:
            raise UserError(
                f"slot_expert of shape {list(table.shape)}",
                f"[layers, slots] with slots a multiple of {ranks} ranks",
                where,
            )
        return cls(version, ranks, table.shape[1] // ranks, table, where)


def _read_table(path: Path) -> npt.NDArray[Any]:
    where = f"placement file {path}"
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise UserError("a single array", "an npz archive with the key slot_expert", where)
        with loaded as archive:
            if "slot_expert" not in archive.files:
                raise UserError(f"keys {sorted(archive.files)}", "the key slot_expert", where)
            table: npt.NDArray[Any] = archive["slot_expert"]
            return table
    except FileNotFoundError:
        raise UserError("no such file", "an npz file with the key slot_expert", where) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"an unreadable file ({error})", "an npz file with the key slot_expert", where) from None


def _masked(table: IntArray, slots_per_rank: int, ranks: Collection[int]) -> IntArray:
    kept = table.copy()
    for rank in ranks:
        own = kept[:, rank * slots_per_rank : (rank + 1) * slots_per_rank]
        own[own >= 0] = EMPTY
    return kept


def _check_table(table: npt.NDArray[Any], ranks: int, slots_per_rank: int, where: str) -> None:
    if table.dtype != np.int64:
        raise UserError(f"slot_expert of dtype {table.dtype}", "int64", where)
    if table.ndim != 2 or table.shape[0] < 1 or table.shape[1] != ranks * slots_per_rank:
        raise UserError(
            f"slot_expert of shape {list(table.shape)}",
            f"[layers, {ranks * slots_per_rank}] ({ranks} ranks with {slots_per_rank} slots each)",
            where,
        )
    if table.min() < ABSENT:
        layer, slot = map(int, np.argwhere(table < ABSENT)[0])
        raise UserError(
            f"{table[layer, slot]} in slot {slot} of layer {layer}", "an expert, -1 (empty) or -2 (no such seat)", where
        )
    if table.max() >= table.shape[1]:
        layer, slot = map(int, np.argwhere(table >= table.shape[1])[0])
        raise UserError(
            f"expert {table[layer, slot]} in slot {slot} of layer {layer}",
            f"an expert below {table.shape[1]}, since every expert needs a slot",
            where,
        )
    if table.max() < 0:
        raise UserError("no expert in any slot", "every expert in at least one slot of each layer", where)


def _check_coverage(table: IntArray, experts: int, where: str) -> None:
    for layer, row in enumerate(table):
        held = np.bincount(row[row >= 0], minlength=experts)
        if not held.all():
            missing = np.flatnonzero(held == 0)
            raise UserError(
                f"no slot for expert {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""),
                f"every expert 0..{experts - 1} in at least one slot",
                f"{where}, layer {layer}",
            )


def _first_layer(layer: int, experts: int, ranks: int, slots_per_rank: int) -> IntArray:
    """[R*S] of one layer. Layers start their replicas at different experts, so that all experts get some."""
    bounds = [r * experts // ranks for r in range(ranks + 1)]
    table = np.full((ranks, slots_per_rank), EMPTY, dtype=np.int64)
    copies = np.ones(experts, dtype=np.int64)
    filled = [bounds[r + 1] - bounds[r] for r in range(ranks)]
    for r in range(ranks):
        table[r, : filled[r]] = np.arange(bounds[r], bounds[r + 1])
    shift = layer * (ranks * slots_per_rank - experts)
    for slot in range(min(filled), slots_per_rank):
        for r in range(ranks):
            if slot < filled[r]:
                continue
            turn = (np.arange(experts) - bounds[r + 1] - shift) % experts
            cost = copies * experts + turn
            cost[table[r, :slot]] = np.iinfo(np.int64).max
            best = int(cost.argmin())
            if cost[best] == np.iinfo(np.int64).max:
                continue
            table[r, slot] = best
            copies[best] += 1
    return table.reshape(-1)
