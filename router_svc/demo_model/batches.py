"""Samples to token batches: flat ids, what is to be learnt of them, and rows of like length for attention."""

from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from router_svc.demo_model.data import Sample, draw_sample
from router_svc.demo_model.network import Rows

ROWS_PER_GROUP = 8


@dataclass(frozen=True)
class Batch:
    """T tokens of whole samples, back to back."""

    ids: Tensor
    """[T] int64"""
    rows: Rows
    sources: Tensor
    """[N] int64: the tokens whose next token is learnt."""
    targets: Tensor
    """[N] int64: those next tokens' ids."""


def encode(sample: Sample, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """(ids, learn) of a sample; each piece is encoded by itself, as prompt and output are when serving."""
    ids: list[int] = []
    learn: list[bool] = []
    for text, learnt in sample.pieces:
        piece = tokenizer.encode(text, add_special_tokens=False).ids
        ids += piece
        learn += [learnt] * len(piece)
    return ids, learn


def rows_of(lengths: list[int]) -> Rows:
    """Rows for samples that stand back to back, grouped in the order given."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    groups = []
    for first in range(0, len(lengths), ROWS_PER_GROUP):
        part = lengths[first : first + ROWS_PER_GROUP]
        places = torch.arange(max(part)).expand(len(part), -1)
        group = places + torch.tensor(starts[first : first + len(part)])[:, None]
        groups.append(group.masked_fill(places >= torch.tensor(part)[:, None], -1))
    return Rows(groups, torch.cat([torch.arange(length) for length in lengths]))


def collate(samples: list[tuple[list[int], list[bool]]]) -> Batch:
    """One batch of encoded samples, sorted by length so that groups hold little padding."""
    ordered = sorted(samples, key=lambda sample: len(sample[0]))
    ids = torch.tensor([token for tokens, _ in ordered for token in tokens])
    wanted = torch.tensor([flag for _, learn in ordered for flag in (*learn[1:], False)])
    sources = wanted.nonzero().flatten()
    return Batch(ids, rows_of([len(tokens) for tokens, _ in ordered]), sources, ids[sources + 1])


def draw_batch(rng: Random, tokenizer: Tokenizer, tokens: int) -> Batch:
    """Samples of the mixture until they hold at least that many tokens."""
    samples, drawn = [], 0
    while drawn < tokens:
        samples.append(encode(draw_sample(rng), tokenizer))
        drawn += len(samples[-1][0])
    return collate(samples)
