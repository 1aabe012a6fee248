"""Paged attention against a plain loop over tokens, over batches of any mix."""

import random
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from router_svc.models.batch import ForwardBatch
from router_svc.models.parts.attention import paged_attention, plan_attention

HEADS, KV_HEADS, DIM = 6, 2, 8


@dataclass
class Case:
    """A step's tensors, its cache of scattered blocks, and every sequence's own keys and values in order."""

    batch: ForwardBatch
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    cache: tuple[torch.Tensor, torch.Tensor]
    sequences: list[tuple[torch.Tensor, torch.Tensor]]


def case(lengths: list[tuple[int, int]], block: int, seed: int, dtype: torch.dtype = torch.float32) -> Case:
    """lengths: per sequence (rows in this step, tokens in the cache before it)."""
    generator = torch.Generator().manual_seed(seed)
    pages = [-(-(rows + past) // block) for rows, past in lengths]
    numbers = list(range(sum(pages) + 2))
    random.Random(seed).shuffle(numbers)
    # What masks hide is multiplied by 0: anything finite may lie there.
    cache = [torch.full(((sum(pages) + 2) * block, KV_HEADS, DIM), 9.0, dtype=dtype) for _ in range(2)]
    tables = torch.zeros(len(lengths), max(pages), dtype=torch.int64)
    sequences, own, slots = [], [], []
    for s, (rows, past) in enumerate(lengths):
        tables[s, : pages[s]] = torch.tensor([numbers.pop() for _ in range(pages[s])])
        k, v = (torch.randn(rows + past, KV_HEADS, DIM, generator=generator).to(dtype) for _ in range(2))
        places = tables[s][torch.arange(rows + past) // block] * block + torch.arange(rows + past) % block
        cache[0][places], cache[1][places] = k, v
        sequences.append((k, v))
        own.append((k[past:], v[past:]))
        slots.append(places[past:])
    total = sum(rows for rows, _ in lengths)
    positions = torch.cat([torch.arange(past, past + rows) for rows, past in lengths])
    batch = ForwardBatch(
        ids=torch.zeros(total, dtype=torch.int64),
        positions=positions,
        kv_slots=torch.cat(slots),
        query_lens=tuple(rows for rows, _ in lengths),
        context_lens=tuple(rows + past for rows, past in lengths),
        block_tables=tables,
        logit_rows=torch.arange(total),
    )
    q = torch.randn(total, HEADS, DIM, generator=generator).to(dtype)
    k, v = (torch.cat([pair[i] for pair in own]) for i in range(2))
    return Case(batch, q, k, v, (cache[0], cache[1]), sequences)


def reference(one: Case, window: int | None, scale: float) -> torch.Tensor:
    """[T, A, D], one token and one head at a time."""
    out, row = torch.empty(one.q.shape), 0
    for (k, v), rows, context in zip(one.sequences, one.batch.query_lens, one.batch.context_lens, strict=True):
        for position in range(context - rows, context):
            first = 0 if window is None else max(0, position - window + 1)
            for head in range(HEADS):
                group = head // (HEADS // KV_HEADS)
                scores = k[first : position + 1, group].float() @ one.q[row, head].float() * scale
                out[row, head] = scores.softmax(0) @ v[first : position + 1, group].float()
            row += 1
    return out


def check(one: Case, block: int, window: int | None, tolerance: float) -> None:
    scale = DIM**-0.5
    plan = plan_attention(one.batch, block, window, one.q.dtype)
    got = paged_attention(one.q, one.k, one.v, one.cache, plan, scale)
    assert got.shape == one.q.shape
    assert (got.float() - reference(one, window, scale)).abs().max() < tolerance


@pytest.mark.parametrize("window", [None, 1, 5, 64])
@pytest.mark.parametrize(
    "lengths",
    [
        [(1, 0)],
        [(9, 0)],
        [(4, 13)],
        [(7, 0), (7, 0), (7, 0), (5, 0), (7, 0)],
        [(1, 3), (1, 300), (1, 5), (1, 70), (1, 290)],
        [(6, 0), (1, 20), (6, 6), (1, 0), (6, 0), (2, 90)],
    ],
    ids=str,
)
def test_known_mixes(lengths: list[tuple[int, int]], window: int | None) -> None:
    check(case(lengths, 4, 1), 4, window, 1e-5)
    check(case(lengths, 16, 2, torch.bfloat16), 16, window, 0.03)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 40)), min_size=1, max_size=7),
    block=st.sampled_from([1, 3, 16]),
    window=st.none() | st.integers(1, 50),
    seed=st.integers(0, 1000),
)
def test_any_mix(lengths: list[tuple[int, int]], block: int, window: int | None, seed: int) -> None:
    check(case(lengths, block, seed), block, window, 1e-5)


def test_decodes_are_grouped_so_that_padding_stays_bounded() -> None:
    one = case([(1, n) for n in (9, 1000, 10, 1100, 400, 11, 63)], 16, 0)
    plan = plan_attention(one.batch, 16, None, torch.float32)
    padded = sum(group.mask.numel() for group in plan.decodes)
    assert len(plan.decodes) == 3
    assert padded <= 1.5 * sum(one.batch.context_lens) + 64 * len(one.batch.context_lens)


def test_equal_prompts_run_together_and_windows_skip_old_blocks() -> None:
    plan = plan_attention(case([(8, 0)] * 5 + [(9, 0)], 16, 0).batch, 16, None, torch.float32)
    assert [(p.start, p.end, p.count) for p in plan.fresh] == [(0, 40, 5), (40, 49, 1)]
    plan = plan_attention(case([(1, 1000), (1, 990)], 16, 0).batch, 16, 20, torch.float32)
    assert plan.decodes[0].mask.shape[-1] == 48
