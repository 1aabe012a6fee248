"""Dense SwiGLU: the MLP of dense layers and of shared experts."""

import torch
from torch.nn import functional

from router_svc.models.parts.linear import Linear


class SwiGLU:
    """down(silu(gate(x)) * up(x)), with gate and up in one product.

    gate_up: [2I, H], gate rows first; down: [H, I]; output_gate: [1, H] of a sigmoid on the output, or None.
    """

    def __init__(self, gate_up: torch.Tensor, down: torch.Tensor, output_gate: torch.Tensor | None = None) -> None:
        self._gate_up = Linear(gate_up)
        self._down = Linear(down)
        self._output_gate = output_gate
        self._width = down.shape[1]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, H] to [T, H]."""
        both = self._gate_up(x)
        out = self._down(functional.silu(both[:, : self._width]) * both[:, self._width :])
        if self._output_gate is not None:
            out = out * torch.sigmoid(functional.linear(x, self._output_gate))
        return out
