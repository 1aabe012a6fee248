"""Dense SwiGLU: the MLP of dense layers and of shared experts."""

import torch
from torch.nn import functional

from router_svc.models.parts.linear import Linear


class SwiGLU:
    """down(silu(gate(x)) * up(x)), with gate and up in one product.

    gate_up: [2I, H], gate rows first
    down: [H, I]
    output_gate: [1, H] of a sigmoid on the output, or None
    """

    def __init__(self, gate_up: torch.Tensor, down: torch.Tensor, output_gate: torch.Tensor | None = None) -> None:
        self._width = down.shape[1]
        self._gate_up = Linear(gate_up)
        self._down = Linear(down)
        self._output_gate = output_gate

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, H] to [T, H]."""
        gate, up = self._gate_up(x).split(self._width, dim=1)
        out = self._down(functional.silu(gate).mul_(up))
        if self._output_gate is not None:
            out = out * torch.sigmoid(functional.linear(x, self._output_gate))
        return out
