"""Attention over paged keys and values: planned once a step, run once a layer. Knows no request and no projection.

Shape letters: T tokens of the step, B sequences of a group, P pages (blocks) of the group's longest context,
A query heads, KH key heads, G = A / KH, D head_dim, N rows of each prompt in a group, C context length.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from router_svc.models.batch import ForwardBatch

# A decode group is cut where padding would make the longest context more than this times the shortest.
_MAX_PADDING = 1.5
_SMALL_CONTEXT = 64  # tokens; below this, padding costs less than another group


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Sequences with one token each.

    rows: [B]
    pages: [B * P] block numbers
    mask: [B, 1, 1, P * block] additive
    """

    rows: torch.Tensor
    pages: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True, slots=True)
class FreshPrompts:
    """`count` whole prompts of equal length in rows [start, end): nothing of them lies in earlier pages.

    mask: [N, N] additive of a sliding window, None = plain causal.
    """

    start: int
    end: int
    count: int
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class PromptChunk:
    """Rows [start, end) of one sequence with a past.

    pages: [P]
    mask: [N, C] additive
    context: C tokens
    """

    start: int
    end: int
    pages: torch.Tensor
    context: int
    mask: torch.Tensor


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """How the rows of a step are grouped, for one sliding window (None = full attention)."""

    block_size: int
    decodes: tuple[DecodeGroup, ...]
    fresh: tuple[FreshPrompts, ...]
    chunks: tuple[PromptChunk, ...]


def plan_attention(batch: ForwardBatch, block_size: int, window: int | None, dtype: torch.dtype) -> AttentionPlan:
    """Group the step's rows. dtype: the masks', which must be the queries'."""
    starts = [0]
    for length in batch.query_lens:
        starts.append(starts[-1] + length)
    singles = [b for b, length in enumerate(batch.query_lens) if length == 1]
    singles.sort(key=lambda b: batch.context_lens[b])
    decodes = [_decode_group(batch, group, starts, block_size, window, dtype) for group in _by_length(batch, singles)]
    fresh: list[FreshPrompts] = []
    chunks: list[PromptChunk] = []
    for b, length in enumerate(batch.query_lens):
        start, end, context = starts[b], starts[b + 1], batch.context_lens[b]
        if length == 1:
            continue
        if context > length:
            pages = batch.block_tables[b, : -(-context // block_size)]
            mask = _causal_mask(context, length, window, dtype, batch.ids.device)
            chunks.append(PromptChunk(start, end, pages, context, mask))
        elif fresh and fresh[-1].end == start and end - start == (start - fresh[-1].start) // fresh[-1].count:
            fresh[-1] = FreshPrompts(fresh[-1].start, end, fresh[-1].count + 1, fresh[-1].mask)
        else:
            slides = window is not None and window < length
            own = _causal_mask(length, length, window, dtype, batch.ids.device) if slides else None
            fresh.append(FreshPrompts(start, end, 1, own))
    return AttentionPlan(block_size, tuple(decodes), tuple(fresh), tuple(chunks))


def paged_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
    plan: AttentionPlan,
    scale: float,
) -> torch.Tensor:
    """[T, A, D] for the step's own q [T, A, D] and k, v [T, KH, D], which the cache holds already.

    cache: keys and values [blocks * block_size, KH, D] of this layer.
    """
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    keys, values = (side.view(-1, plan.block_size, *side.shape[1:]) for side in cache)
    for group in plan.decodes:
        _attend_decodes(q, keys, values, group, scale, out)
    for prompts in plan.fresh:
        rows = slice(prompts.start, prompts.end)
        own = [side[rows].unflatten(0, (prompts.count, -1)).transpose(1, 2) for side in (q, k, v)]
        out[rows] = _attend(own[0], own[1], own[2], prompts.mask, scale).transpose(1, 2).flatten(0, 1)
    for chunk in plan.chunks:
        rows = slice(chunk.start, chunk.end)
        past_k, past_v = (side.index_select(0, chunk.pages).flatten(0, 1)[: chunk.context] for side in (keys, values))
        mine, past_k, past_v = (side.transpose(0, 1)[None] for side in (q[rows], past_k, past_v))
        mixed = _attend(mine, past_k, past_v, chunk.mask, scale)
        out[rows] = mixed[0].transpose(0, 1)
    return out


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    """[B, A, N, D] for q [B, A, N, D], k and v [B, KH, C, D]; mask None = causal."""
    gqa = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=gqa)


def _attend_decodes(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, group: DecodeGroup, scale: float, out: torch.Tensor
) -> None:
    """One row of each sequence over its own pages.

    keys, values: [blocks, block_size, KH, D]
    """
    count, context = group.mask.shape[0], group.mask.shape[-1]
    kv_heads, dim = keys.shape[2:]
    # Whole blocks are gathered: several times faster than single tokens. [B, KH, P * block, D]
    k, v = (
        side.index_select(0, group.pages).view(count, context, kv_heads, dim).transpose(1, 2) for side in (keys, values)
    )
    # The G query heads of a key head share its mask, so they ride as G query rows and nothing is repeated.
    rows = q.index_select(0, group.rows).view(count, kv_heads, -1, dim)
    mixed = scaled_dot_product_attention(rows, k, v, attn_mask=group.mask, scale=scale)
    out.index_copy_(0, group.rows, mixed.reshape(count, -1, dim))


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
    lengths = [batch.context_lens[b] for b in group]
    first_block = 0 if window is None else max(0, min(lengths) - window) // block_size
    blocks = torch.arange(first_block, -(-max(lengths) // block_size), device=device)
    pages = batch.block_tables[torch.tensor(group, device=device)][:, blocks].flatten()
    positions = torch.arange(first_block * block_size, (first_block + len(blocks)) * block_size, device=device)
    contexts = torch.tensor(lengths, device=device)[:, None]
    hidden = positions >= contexts
    if window is not None:
        hidden |= positions < contexts - window
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
    rows = torch.tensor([starts[b] for b in group], device=device)
    return DecodeGroup(rows, pages, mask[:, None, None, :])


def _causal_mask(context: int, rows: int, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[rows, context] additive: what the last `rows` tokens of a sequence may see of it."""
    keys = torch.arange(context, device=device)
    queries = torch.arange(context - rows, context, device=device)[:, None]
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
