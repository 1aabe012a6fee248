"""LoadCollector: steps as the expert ranks counted them, put together to tokens per logical expert. Pure numpy.

Shape letters: A sources, L layers, E experts, R ranks, S slots per rank.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from experts.placement import Placement
from experts.slots.loads import BOTH, StepLoads

IntArray = npt.NDArray[np.int64]
_PATIENCE = 512  # steps that one rank may be behind another before a step is given up


@dataclass(frozen=True, slots=True, eq=False)
class StepRow:
    """One step, or several together.

    source_loads: int64 [A, L, E]
    rank_tokens: int64 [R, L] of the epoch's ranks with experts
    work: [R] tokens, those of a slot in use at least as many as cost what reading its weights does
    seconds: [R] in experts
    steps: how many
    phase as in the trace file
    """

    epoch: int
    step: int
    phase: int
    source_loads: IntArray
    rank_tokens: IntArray
    work: npt.NDArray[np.float64]
    seconds: npt.NDArray[np.float64]
    steps: int = 1

    @property
    def loads(self) -> IntArray:
        """[L, E] over all sources."""
        total: IntArray = self.source_loads.sum(axis=0)
        return total


class LoadCollector:
    """Takes ranks' steps of one epoch in any order, gives whole ones in order.

    ranks: the expert seats of the epoch
    sources: the members that bring tokens, as numbers of the group
    floor: of the split's policy
    """

    def __init__(
        self, epoch: int, placement: Placement, ranks: Iterable[int], sources: Iterable[int], floor: float = 0.0
    ) -> None:
        self.epoch, self._floor = epoch, floor
        self._placements = {placement.version: placement}
        self._ranks, self._sources = tuple(ranks), list(sources)
        self._open: dict[int, dict[int, StepLoads]] = {}
        self.given_up = 0  # steps that some rank never reported

    def know(self, placement: Placement) -> None:
        """A version that steps may name from now on."""
        self._placements[placement.version] = placement

    def add(self, rank: int, steps: Iterable[StepLoads]) -> None:
        """A rank's newest steps; those of other epochs are not for this collector."""
        for step in steps:
            if step.epoch == self.epoch:
                self._open.setdefault(step.step, {})[rank] = step

    def take(self) -> list[StepRow]:
        """The steps that all ranks have reported, oldest first."""
        whole = sorted(s for s, rows in self._open.items() if len(rows) == len(self._ranks))
        if whole:
            newest = next(iter(self._open[whole[-1]].values())).version  # no later step goes back behind it
        rows = [self._row(self._open.pop(step)) for step in whole]
        if whole:
            late = [s for s in self._open if s < whole[-1] - _PATIENCE]
            self.given_up += len(late)
            for step in late:
                del self._open[step]
            used = min((t.version for rows in self._open.values() for t in rows.values()), default=newest)
            self._placements = {v: p for v, p in self._placements.items() if v >= min(used, newest)}
        return rows

    def _row(self, rows: dict[int, StepLoads]) -> StepRow:
        first = rows[self._ranks[0]]
        placement = self._placements[first.version]
        layers, experts = placement.layers, placement.experts
        loads = np.zeros((len(self._sources), layers, experts + 1), dtype=np.int64)
        tokens = np.zeros((len(self._ranks), layers), dtype=np.int64)
        work = np.zeros(len(self._ranks))
        at_layer = np.arange(layers)[:, None]
        for i, rank in enumerate(self._ranks):
            counts = rows[rank].counts[self._sources]
            held = np.where(placement.local(rank) < 0, experts, placement.local(rank))
            for a, table in enumerate(counts):
                np.add.at(loads[a], (at_layer, held), table)
            tokens[i] = counts.sum(axis=(0, 2))
            slots = counts.sum(axis=0)
            work[i] = np.maximum(slots[slots > 0], self._floor).sum()
        seconds = np.array([rows[rank].seconds for rank in self._ranks])
        return StepRow(self.epoch, first.step, first.phase, loads[:, :, :experts], tokens, work, seconds)


class History:
    """The newest rows, small steps put together until a row has enough tokens to say something."""

    def __init__(self, rows: int, least_pairs: int) -> None:
        """rows: kept
        least_pairs: routed tokens a layer that make a row
        """
        self._rows: deque[StepRow] = deque(maxlen=rows)
        self._least = least_pairs
        self._part: StepRow | None = None
        self.total = 0  # rows since the start

    def add(self, row: StepRow) -> None:
        """Take in a step; sources are added up."""
        row = replace(row, source_loads=row.loads[None])
        if self._part is not None and self._part.epoch == row.epoch:
            row = _together(self._part, row)
        self._part = row
        if self._part.source_loads.sum() >= self._least * self._part.source_loads.shape[1]:
            self._rows.append(self._part)
            self._part = None
            self.total += 1

    def __len__(self) -> int:
        return len(self._rows)

    def newest(self, count: int) -> list[StepRow]:
        """The last rows, oldest first."""
        return list(self._rows)[-count:]

    def loads(self) -> IntArray:
        """[T, L, E] of all rows kept."""
        return np.stack([row.loads for row in self._rows])


def excess_of(rows: list[StepRow]) -> float:
    """Sum over rows and layers of the busiest rank's tokens over the sum of the mean's, minus 1, as it really was."""
    mean = sum(float(row.rank_tokens.mean(axis=0).sum()) for row in rows)
    return sum(int(row.rank_tokens.max(axis=0).sum()) for row in rows) / mean - 1 if mean else 0.0


def _together(a: StepRow, b: StepRow) -> StepRow:
    return StepRow(
        b.epoch, b.step, a.phase if a.phase == b.phase else BOTH, a.source_loads + b.source_loads, a.rank_tokens + b.rank_tokens,
        a.work + b.work, a.seconds + b.seconds, a.steps + b.steps,
    )  # fmt: skip
