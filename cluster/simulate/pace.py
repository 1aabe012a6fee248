"""Pace: a time that an expert rank takes on purpose, so that simulations on few cores have ranks of a known speed."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Pace:
    """seconds: per token and slot
    floor: tokens that a slot in use costs at least, as reading its weights does
    """

    seconds: float
    floor: float = 0.0

    def of(self, slots: torch.Tensor) -> float:
        """Seconds for a batch. slots: [N, K] int32 rank-local, -1 = none."""
        used = slots[slots >= 0]
        counts = np.bincount(used.numpy()) if used.numel() else np.zeros(0)
        return self.seconds * float(np.maximum(counts[counts > 0], self.floor).sum())
