"""What travels between ranks in a step, as data. Knows no transport.

Shape letters: T tokens of one source, N rows received by a rank, H hidden, K top-k, R ranks.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Route:
    """The gate's choice. ids: [T, K] int32 logical experts, -1 = none; weights: [T, K] float32."""

    ids: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True, slots=True)
class ExpertBatch:
    """Rows that arrived at a rank for one layer: each token at most once, with all its slots here.

    x: [N, H] activations; slots: [N, K] int32 rank-local slot, -1 = none; weights: [N, K] float32; rows: per member of
    the group, how many of the N are its tokens (they come in this order); empty: all are one source's.
    """

    x: torch.Tensor
    slots: torch.Tensor
    weights: torch.Tensor
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StepWish:
    """What one rank brings to a step's header.

    decode: tokens of running sequences, always granted; prefill: prompt tokens it would like to run;
    stop: it wants the group to end after this step.
    """

    decode: int = 0
    prefill: int = 0
    stop: bool = False


@dataclass(frozen=True, slots=True)
class StepHeader:
    """What all ranks know after a step's header, equal on all of them.

    tokens: per member (group order), upper bound of tokens it runs in this step (decode + granted prefill);
    prefill: per member, granted prompt tokens; version: the step's placement version (the members' minimum);
    stop: some member asked to end. A step whose `tokens` are all 0 runs no layer.
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

    budget: tokens of a whole step (all ranks, decode included); decode, wishes: tokens per rank.
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
