"""Rounds: the way from one placement to another in steps that a cluster can take, each a valid placement. Pure.

A rank fetches only so many experts for one switch, which bounds its staging memory and the pause in which slots are
written. Experts that change places belong to one round, so that each keeps a live copy in every version.
"""

from collections import Counter
from dataclasses import replace

import numpy as np

from experts.placement import Change, Placement


def rounds(current: Placement, target: Placement, fetches_per_rank: int) -> list[Placement]:
    """Placements after `current`, versions rising by one, the last with the table of `target`.

    A round brings at most fetches_per_rank experts to each rank, unless experts that change places need more.
    """
    assert fetches_per_rank >= 1, fetches_per_rank
    remaining = current.diff(target)
    out: list[Placement] = []
    last = current
    while remaining:
        chosen = _round(last, remaining, fetches_per_rank)
        table = last.slot_expert.copy()
        for change in chosen:
            table[change.layer, change.slot] = change.new
        last = replace(last, version=last.version + 1, slot_expert=table, where=target.where)
        out.append(last)
        done = set(chosen)
        remaining = [change for change in remaining if change not in done]
    return out


def _round(placement: Placement, remaining: list[Change], limit: int) -> list[Change]:
    copies = placement.replicas()
    width = placement.slots_per_rank
    chosen: dict[Change, None] = {}  # ordered
    fetched: Counter[int] = Counter()
    for change in remaining:
        if change in chosen:
            continue
        together = _closure(change, [c for c in remaining if c not in chosen], copies)
        wanted = fetched + Counter(c.slot // width for c in together if c.new >= 0)
        if chosen and max(wanted.values(), default=0) > limit:
            continue
        fetched = wanted
        for c in together:
            chosen[c] = None
            if c.old >= 0:
                copies[c.layer, c.old] -= 1
            if c.new >= 0:
                copies[c.layer, c.new] += 1
    return list(chosen)


def _closure(first: Change, open_changes: list[Change], copies: np.ndarray) -> list[Change]:
    """`first` and what must come with it, so that no expert is left without a copy."""
    together = [first]
    for change in together:  # grows while it is walked
        if change.old < 0:
            continue
        balance = sum((c.new == change.old) - (c.old == change.old) for c in together if c.layer == change.layer)
        if copies[change.layer, change.old] + balance > 0:
            continue
        together.append(
            next(c for c in open_changes if c.layer == change.layer and c.new == change.old and c not in together)
        )
    return together
