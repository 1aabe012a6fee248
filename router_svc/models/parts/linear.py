"""A projection with its weight in the form that multiplies fastest here."""

import torch
from torch.nn import functional


class Linear:
    """y = x W^T + b for x [T, M]. weight: [N, M] in any float dtype; bias: [N] or None."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, N] in the weight's dtype."""
        return functional.linear(x, self.weight, self.bias)
