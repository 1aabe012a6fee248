"""Agreement: from what every member brings to a step's header to the step that all run. The same rows give the same
answer on every member, so that nobody decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Row(NamedTuple):
    """What a member brings to a header, as int64 numbers on the wire.

    epoch, step: the step that it is about to open
    version: the newest placement that it holds complete
    decode, prefill, stop: see StepWish
    ready: the newest epoch that it is ready for, its own where there is no other
    """

    epoch: int
    step: int
    version: int
    decode: int
    prefill: int
    stop: int
    ready: int


@dataclass(frozen=True, slots=True)
class GoTo:
    """The answer in place of a step: every member is ready for this epoch, and goes there before its next step."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Astray:
    """The answer where a member's row is of another step: the group is broken. member: its number in the group."""

    member: int
    epoch: int
    step: int


def agree(rows: Sequence[Row], epoch: int, step: int, budget: int) -> "StepHeader | GoTo | Astray":
    """What all members of an epoch do next.

    rows: one a member, in the order of the group
    epoch, step: that this member is about to open
    budget: tokens of a whole step, all members, decode included

    A placement is used from the step on for which all hold it: the least version counts. Members go over to another
    epoch when all name the same one, and none while one asks to stop.
    """
    for member, row in enumerate(rows):
        if (row.epoch, row.step) != (epoch, step):
            return Astray(member, row.epoch, row.step)
    stop = any(row.stop for row in rows)
    ready = {row.ready for row in rows}
    if len(ready) == 1 and ready != {epoch} and not stop:
        return GoTo(ready.pop())
    decode, wishes = tuple(row.decode for row in rows), tuple(row.prefill for row in rows)
    prefill = share_prefill(budget, decode, wishes, step)
    tokens = tuple(own + granted for own, granted in zip(decode, prefill, strict=True))
    return StepHeader(epoch, step, min(row.version for row in rows), tokens, prefill, stop)


@dataclass(frozen=True, slots=True)
class StepWish:
    """What one rank brings to a step's header.

    decode: tokens of running sequences, always granted
    prefill: prompt tokens it would like to run
    stop: it wants the group to end after this step
    """

    decode: int = 0
    prefill: int = 0
    stop: bool = False


@dataclass(frozen=True, slots=True)
class StepHeader:
    """What all ranks know after a step's header, equal on all of them.

    tokens: per member (group order), upper bound of tokens it runs in this step (decode + granted prefill)
    prefill: per member, granted prompt tokens
    version: the step's placement version (the members' minimum)
    stop: some member asked to end

    A step whose `tokens` are all 0 runs no layer.
    """

    epoch: int
    step: int
    version: int
    tokens: tuple[int, ...]
    prefill: tuple[int, ...]
    stop: bool

    @property
    def busy(self) -> bool:
        """Whether any rank runs tokens, so that every rank takes part in each layer."""
        return any(self.tokens)


def share_prefill(budget: int, decode: tuple[int, ...], wishes: tuple[int, ...], step: int) -> tuple[int, ...]:
    """Divide one step's prefill budget over ranks: the rule that every rank applies to the same header.

    budget: tokens of a whole step (all ranks, decode included)
    decode, wishes: tokens per rank

    Each wish is granted up to an equal level (water-filling), left-over tokens go round robin from rank
    `step % R` on, so that no rank is first for ever. At least one token is granted whenever one is wished
    and nothing decodes, so that a budget below the decode load only slows prefill when decoders run.
    """
    left = max(budget - sum(decode), 0)
    granted = [0] * len(wishes)
    hungry = [r for r in range(len(wishes)) if wishes[r] > 0]
    while hungry and left >= len(hungry):
        level = min(left // len(hungry), min(wishes[r] - granted[r] for r in hungry))
        for r in hungry:
            granted[r] += level
        left -= level * len(hungry)
        hungry = [r for r in hungry if wishes[r] > granted[r]]
    turn = sorted(hungry, key=lambda r: (r - step) % len(wishes))
    for r in turn[:left]:
        granted[r] += 1
    return tuple(granted)
