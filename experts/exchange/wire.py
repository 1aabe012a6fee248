"""What travels between ranks in a step, as data. Knows no transport.

Shape letters: T tokens of one source, N rows received by a rank, H hidden, K top-k, R ranks.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Route:
    """The gate's choice.

    ids: [T, K] int32 logical experts, -1 = none
    weights: [T, K] float32
    """

    ids: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True, slots=True)
class ExpertBatch:
    """Rows that arrived at a rank for one layer: each token at most once, with all its slots here.

    x: [N, H] activations
    slots: [N, K] int32 rank-local slot, -1 = none
    weights: [N, K] float32
    rows: per member of the group, how many of the N are its tokens (they come in this order); empty: all are one source's
    """

    x: torch.Tensor
    slots: torch.Tensor
    weights: torch.Tensor
    rows: tuple[int, ...] = ()
