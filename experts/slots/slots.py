"""ExpertSlots: the weights a rank holds, a room per slot and MoE layer. Knows no checkpoint and no peers."""

import torch

from experts.exchange.wire import ExpertBatch
from experts.kernels.native import native
from experts.slots.ffn import grouped_swiglu
from experts.spec import ExpertsSpec


def slot_bytes(spec: ExpertsSpec, dtype: torch.dtype) -> int:
    """Bytes of one slot of one layer."""
    return spec.parameters_per_expert * dtype.itemsize


class ExpertSlots:
    """w13: per layer [S, 2I, H], gate rows first
    w2: per layer [S, H, I]

    S slots of this rank, all of one dtype. Fresh slots are not set to anything: a loader fills them before they are used.
    """

    def __init__(self, spec: ExpertsSpec, slots: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.spec = spec
        self.slots = slots
        self.dtype = dtype
        self.device = torch.device(device)
        if self.device.type == "cpu":
            native()  # built now rather than under the first token
        shape13 = (slots, 2 * spec.width, spec.hidden)
        shape2 = (slots, spec.hidden, spec.width)
        self.w13 = tuple(torch.empty(shape13, dtype=dtype, device=device) for _ in spec.layers)
        self.w2 = tuple(torch.empty(shape2, dtype=dtype, device=device) for _ in spec.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of all slots of all layers."""
        return self.slots * self.spec.moe_layers * slot_bytes(self.spec, self.dtype)

    def parts(self, layer: int, slot: int) -> tuple[torch.Tensor, ...]:
        """All tensors of one slot, as views: what a copy of an expert consists of, in the order of checksums."""
        return self.w13[layer][slot], self.w2[layer][slot]

    def like_a_slot(self, layer: int) -> tuple[torch.Tensor, ...]:
        """Fresh memory for one expert of a layer, shaped like `parts`."""
        return tuple(torch.empty_like(part) for part in self.parts(layer, 0))

    def forward(self, layer: int, batch: ExpertBatch) -> torch.Tensor:
        """[N, H] float32, each row's weighted sum over its slots here; N may be 0."""
        return grouped_swiglu(batch.x, batch.slots, batch.weights, self.w13[layer], self.w2[layer])
