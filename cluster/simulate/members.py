"""Ranks that join and leave in the course of a simulation. Pure data."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.balance.planner import repaired
from cluster.balance.shape import ClusterShape
from experts.errors import UserError
from experts.placement import Placement


@dataclass(frozen=True, slots=True, order=True)
class MemberChange:
    """From `step` on, `rank` takes part (joins) or does not."""

    step: int
    rank: int
    joins: bool

    @property
    def option(self) -> str:
        """As it is typed."""
        return f"--{'join' if self.joins else 'leave'} {self.rank}@{self.step}"


def parse_changes(leaves: Iterable[str], joins: Iterable[str]) -> tuple[MemberChange, ...]:
    """The changes of `--leave R@STEP` and `--join R@STEP`, in order of steps. Raises UserError."""
    texts = [(text, False) for text in leaves] + [(text, True) for text in joins]
    return tuple(sorted(_parsed(text, joins) for text, joins in texts))


def _parsed(text: str, joins: bool) -> MemberChange:
    rank, _, step = text.partition("@")
    if not (rank.isdecimal() and step.isdecimal()):
        raise UserError(repr(text), "RANK@STEP, as in 3@100", "--join" if joins else "--leave")
    return MemberChange(int(step), int(rank), joins)


def away_at(changes: Sequence[MemberChange], step: int) -> frozenset[int]:
    """Ranks that do not take part in a step. A rank whose first change is a join is away before it."""
    first: dict[int, bool] = {}
    for change in changes:
        first.setdefault(change.rank, change.joins)
    away = {rank for rank, joins in first.items() if joins}
    for change in changes:
        if change.step <= step:
            (away.discard if change.joins else away.add)(change.rank)
    return frozenset(away)


def check_changes(
    changes: Sequence[MemberChange], shape: ClusterShape, layers: int, experts: int, steps: int
) -> None:  # fmt: skip
    """Raise UserError for changes that can't be: of ranks there are not, twice the same, or with too few slots left."""
    present: dict[int, bool] = {}
    for change in changes:
        if not 0 <= change.rank < shape.ranks:
            raise UserError(f"rank {change.rank}", f"ranks 0 to {shape.ranks - 1}", change.option)
        if not 0 < change.step < steps:
            raise UserError(f"step {change.step}", f"steps 1 to {steps - 1}", change.option)
        if present.get(change.rank) is change.joins:
            state = "takes part" if change.joins else "is away"
            raise UserError(f"rank {change.rank}, which {state} by then", "the other change first", change.option)
        present[change.rank] = change.joins
    for step in (0, *(change.step for change in changes)):
        replace(shape, dead=shape.dead | away_at(changes, step)).check(layers, experts)


def without_ranks(placement: Placement, shape: ClusterShape, load: np.ndarray) -> Placement:
    """`placement` with nothing on the shape's dead ranks, and a slot elsewhere for what only they held. load: [L, E]."""
    table = repaired(load, shape, placement).astype(np.int64)
    return Placement(placement.version + 1, placement.ranks, placement.slots_per_rank, table, "ranks away")
