"""Inputs of grouped SwiGLU, and its sums in double precision."""

import torch


def case(
    rows: int, top_k: int, slots: int, hidden: int, width: int, dtype: torch.dtype, seed: int = 0
) -> tuple[torch.Tensor, ...]:
    """x, slots, weights, w13, w2 of a layer; rows name distinct slots and some none."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, hidden, generator=g).to(dtype)
    picks = [torch.randperm(slots, generator=g)[:top_k] for _ in range(rows)]
    ids = torch.stack(picks) if rows else torch.empty(0, top_k)
    ids = torch.where(torch.rand(rows, ids.shape[1], generator=g) < 0.2, -1, ids).to(torch.int32)
    weights = torch.rand(rows, ids.shape[1], generator=g)
    w13 = (torch.randn(slots, 2 * width, hidden, generator=g) / hidden**0.5).to(dtype)
    return x, ids, weights, w13, (torch.randn(slots, hidden, width, generator=g) / width**0.5).to(dtype)


def exact(
    x: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor
) -> torch.Tensor:
    """[N, H] float64 by loops, nothing rounded between."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    width = w2.shape[2]
    for n in range(x.shape[0]):
        for k in range(slots.shape[1]):
            s = int(slots[n, k])
            if s >= 0:
                both = w13[s].double() @ x[n].double()
                hidden = torch.nn.functional.silu(both[:width]) * both[width:]
                out[n] += weights[n, k].double() * (w2[s].double() @ hidden)
    return out
