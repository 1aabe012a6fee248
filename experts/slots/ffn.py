"""Grouped SwiGLU: every row through the experts of its slots, weighted and summed. Picks the way to compute it.

Knows no layer, no rank and no route: slots are numbers of weight matrices.
Shape letters: N rows, K slots of a row, S slots, H hidden, I width of an expert.
"""

import math
from typing import Any

import torch
from torch.nn import functional

from experts.kernels.native import native

grouped_mm: Any = getattr(functional, "grouped_mm", None)  # torch 2.10 and newer
_SUM_ROWS = 1024  # rows whose pairs are summed at a time: K float32 copies of them are made


def swiglu_reference(
    x: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor
) -> torch.Tensor:
    """[N, H] float32: sum over k of weights[n, k] * down(silu(gate(x[n])) * up(x[n])) with the expert in slots[n, k].

    The plain statement of what every other way here computes.

    x: [N, H]
    slots: [N, K] int, -1 = none
    weights: [N, K] float32
    w13: [S, 2I, H], gate rows first
    w2: [S, H, I]
    x, w13, w2: of one dtype
    """
    sums = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    width = w2.shape[2]
    for slot in range(w13.shape[0]):
        rows, places = (slots == slot).nonzero(as_tuple=True)
        both = functional.linear(x[rows], w13[slot])
        hidden = functional.silu(both[:, :width]) * both[:, width:]
        out = functional.linear(hidden, w2[slot]).float()
        sums.index_add_(0, rows, out * weights[rows, places, None])
    return sums


def grouped_swiglu(
    x: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor
) -> torch.Tensor:
    """What `swiglu_reference` states, by the quickest way here; slots: int32; touches only slots that rows name."""
    if x.device.type == "cuda" and x.dtype == torch.bfloat16 and _groups(w13) and _groups(w2):
        return grouped_mm_swiglu(x, slots, weights, w13, w2)
    kernels = native() if x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) else None
    if kernels is None or x.shape[0] == 0:
        return torch_swiglu(x, slots, weights, w13, w2)
    limit = torch_from(kernels.target, kernels.has_amx, x.dtype) * w13.shape[0]
    if slots.numel() >= limit and int((slots >= 0).sum()) >= limit:
        return torch_swiglu(x, slots, weights, w13, w2)
    return kernels.swiglu(x, slots, weights, w13, w2)


def torch_from(target: str, has_amx: bool, dtype: torch.dtype) -> float:
    """Rows per slot from which torch's matrix products beat the C kernel.

    Measured at hidden 1024, width 768, two cores: torch's bf16 is quick only where the processor multiplies bf16
    itself; on AMX it gives 164 GFLOP/s at 16 rows (the kernel 153), 638 at 128 (202). In float32 they meet near 128.
    """
    if dtype == torch.float32:
        return 96
    if has_amx:
        return 12
    return 40 if target == "avx512" else math.inf


def grouped_mm_swiglu(
    x: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor
) -> torch.Tensor:
    """What `swiglu_reference` states, with pairs sorted by slot and one product over all slots for each of w13 and w2.

    For devices: the same number of launches whatever the rows name, and the host waits for nothing.
    """
    count, top_k = slots.shape
    if count == 0:
        return torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    held, width = w13.shape[0], w2.shape[2]
    flat = torch.where(slots < 0, held, slots).reshape(-1)  # pairs of no slot come last, after all groups
    ordered, order = flat.sort(stable=True)
    ends = torch.searchsorted(ordered, torch.arange(held, device=x.device, dtype=ordered.dtype), right=True).int()
    both = grouped_mm(x[order // top_k], w13.transpose(1, 2), offs=ends)
    hidden = functional.silu(both[:, :width]).mul_(both[:, width:])
    out = grouped_mm(hidden, w2.transpose(1, 2), offs=ends)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=x.device)  # where each pair's row lies
    # A pair of no slot has a row that nothing wrote; its weight alone would not make a NaN there 0.
    sums = []
    for rows, seats, scale in zip(
        place.view(count, top_k).split(_SUM_ROWS), slots.split(_SUM_ROWS), weights.split(_SUM_ROWS), strict=True
    ):
        parts = out[rows].float().mul_(scale.unsqueeze(2)).masked_fill_((seats < 0).unsqueeze(2), 0.0)
        sums.append(parts.sum(dim=1))
    return sums[0] if len(sums) == 1 else torch.cat(sums)


def _groups(w: torch.Tensor) -> bool:
    """Whether torch's grouped product takes these weights: rows of whole 16 bytes."""
    return grouped_mm is not None and w.shape[2] * w.itemsize % 16 == 0 and w.shape[1] * w.itemsize % 16 == 0


def torch_swiglu(
    x: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor
) -> torch.Tensor:
    """What `swiglu_reference` states, with pairs sorted by slot and two matrix products for each slot that is named."""
    sums = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    if x.shape[0] == 0:
        return sums
    flat = slots.reshape(-1)
    ordered, order = flat.sort(stable=True)
    counts = torch.bincount(ordered.long() + 1, minlength=w13.shape[0] + 1).tolist()
    rows = order // slots.shape[1]
    scale = weights.reshape(-1)[order].unsqueeze(1)
    end = counts[0]
    width = w2.shape[2]
    for slot, count in enumerate(counts[1:]):
        if not count:
            continue
        start, end = end, end + count
        mine = rows[start:end]
        both = functional.linear(x[mine], w13[slot])
        hidden = functional.silu(both[:, :width]).mul_(both[:, width:])
        out = functional.linear(hidden, w2[slot]).float()
        sums.index_add_(0, mine, out.mul_(scale[start:end]))
    return sums
