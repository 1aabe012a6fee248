"""Attention over paged keys and values: planned once a step, run once a layer. Knows no sequence's text or request.

Shape letters: T tokens of the step, B sequences of a group, A query heads, KH key heads, G = A / KH,
D head_dim, C context length (padded to the group's longest).
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from router_svc.engine.batch import ForwardBatch, KVCache

# A decode group is cut where padding would make the longest context read more than this times the shortest.
_MAX_PADDING = 1.5
_SMALL_CONTEXT = 64  # tokens; below this, padding costs less than another group


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Sequences with one token each. rows: [B]; pages: [B, C] flat cache positions; mask: [B, 1, 1, C] additive."""

    rows: torch.Tensor
    pages: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True, slots=True)
class PromptChunk:
    """One sequence's consecutive rows. pages: [C]; mask: [rows, C] additive, None = plain causal from position 0."""

    start: int
    end: int
    pages: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """How the rows of a step are grouped, for one sliding window (None = full attention)."""

    decodes: tuple[DecodeGroup, ...]
    chunks: tuple[PromptChunk, ...]


def plan_attention(batch: ForwardBatch, block_size: int, window: int | None, dtype: torch.dtype) -> AttentionPlan:
    """Group the step's rows. dtype: the masks', which must be the queries'."""
    device = batch.ids.device
    starts = [0]
    for length in batch.query_lens:
        starts.append(starts[-1] + length)
    singles = [b for b, length in enumerate(batch.query_lens) if length == 1]
    singles.sort(key=lambda b: batch.context_lens[b])
    decodes = tuple(
        _decode_group(batch, group, starts, block_size, window, dtype) for group in _by_length(batch, singles)
    )
    chunks = []
    for b, length in enumerate(batch.query_lens):
        if length < 2:
            continue
        context = batch.context_lens[b]
        positions = torch.arange(context, device=device)
        pages = batch.block_tables[b][positions // block_size] * block_size + positions % block_size
        mask = None
        if context != length or (window is not None and window < context):
            queries = torch.arange(context - length, context, device=device)[:, None]
            hidden = positions[None, :] > queries
            if window is not None:
                hidden |= queries - positions[None, :] >= window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
        chunks.append(PromptChunk(starts[b], starts[b + 1], pages, mask))
    return AttentionPlan(decodes, tuple(chunks))


def paged_attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, plan: AttentionPlan, scale: float
) -> torch.Tensor:
    """[T, A, D] for q [T, A, D], over keys and values [blocks * block_size, KH, D] that hold the step's own rows too."""
    out = torch.empty_like(q)
    heads, kv_heads, dim = q.shape[1], keys.shape[1], q.shape[2]
    for group in plan.decodes:
        k = keys[group.pages].transpose(1, 2)
        v = values[group.pages].transpose(1, 2)
        # The G query heads of a key head share its mask, so they ride as G query rows and nothing is repeated.
        rows = q[group.rows].view(-1, kv_heads, heads // kv_heads, dim)
        mixed = scaled_dot_product_attention(rows, k, v, attn_mask=group.mask, scale=scale)
        out[group.rows] = mixed.reshape(-1, heads, dim)
    for chunk in plan.chunks:
        k = keys[chunk.pages].transpose(0, 1)[None]
        v = values[chunk.pages].transpose(0, 1)[None]
        mixed = scaled_dot_product_attention(
            q[chunk.start : chunk.end].transpose(0, 1)[None],
            k,
            v,
            attn_mask=chunk.mask,
            is_causal=chunk.mask is None,
            scale=scale,
            enable_gqa=heads != kv_heads,
        )
        out[chunk.start : chunk.end] = mixed[0].transpose(0, 1)
    return out


def _by_length(batch: ForwardBatch, singles: list[int]) -> list[list[int]]:
    groups: list[list[int]] = []
    for b in singles:
        if groups and batch.context_lens[b] <= max(_SMALL_CONTEXT, _MAX_PADDING * batch.context_lens[groups[-1][0]]):
            groups[-1].append(b)
        else:
            groups.append([b])
    return groups


def _decode_group(
    batch: ForwardBatch, group: list[int], starts: list[int], block_size: int, window: int | None, dtype: torch.dtype
) -> DecodeGroup:
    device = batch.ids.device
    contexts = torch.tensor([batch.context_lens[b] for b in group], device=device)[:, None]
    longest = max(batch.context_lens[b] for b in group)
    first = 0 if window is None else max(0, min(batch.context_lens[b] for b in group) - window)
    positions = torch.arange(first, longest, device=device)
    tables = batch.block_tables[torch.tensor(group, device=device)]
    pages = tables[:, positions // block_size] * block_size + positions % block_size
    hidden = positions[None, :] >= contexts
    if window is not None:
        hidden |= contexts - 1 - positions[None, :] >= window
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
    rows = torch.tensor([starts[b] for b in group], device=device)
    return DecodeGroup(rows, pages, mask[:, None, None, :])
