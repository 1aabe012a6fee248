"""Two layers of eight tiny experts with weights of their own, the same in every process."""

import torch

from experts.spec import ExpertNames, ExpertsSpec

SPEC = ExpertsSpec((0, 1), 8, (2, 2), 16, 8, "silu", ExpertNames(*("unused",) * 5))


def all_weights() -> tuple[torch.Tensor, torch.Tensor]:
    """w13 [E, 2I, H] and w2 [E, H, I], float32."""
    generator = torch.Generator().manual_seed(3)
    w13 = torch.randn(SPEC.experts, 2 * SPEC.width, SPEC.hidden, generator=generator)
    return w13, torch.randn(SPEC.experts, SPEC.hidden, SPEC.width, generator=generator)
