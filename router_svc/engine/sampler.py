"""From logits to tokens. Randomness is a pure function of (seed, choice, token index); no state is kept.

A request with a given seed draws the same tokens alone and in any batch as long as its logits are the same to
rounding: in float32 they are; in bfloat16 the batch's size can flip near-ties.
Shape letters: n rows, V vocabulary.
"""

import struct
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b

import torch

from router_svc.request import TokenLogprob
from router_svc.sampling import Sampling

_GREEDY_BELOW = 1e-5  # temperatures under it draw the likeliest token; dividing by less overflows float32
NO_NUMBERS, NONE_LEFT = -1, -2
_LARGEST = 1e30  # of a penalised logit, so that no temperature takes it out of float32


@dataclass(frozen=True, slots=True)
class Draw:
    """What one row needs beside its logits.

    prompt, output: token ids so far (for penalties)
    """

    sampling: Sampling
    choice: int
    index: int  # of the token to be drawn among the choice's tokens
    tokens: list[int]
    prompt_len: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """token: NO_NUMBERS when the row's logits were none, NONE_LEFT when the call's parameters forbid every token
    logprob: where asked for, of the unmodified logits
    """

    token: int
    logprob: TokenLogprob | None = None


def uniform(seed: int, choice: int, index: int) -> float:
    """A number in [0, 1), the same for ever for the same three."""
    digest = blake2b(struct.pack("<qqq", seed, choice, index), digest_size=8, person=b"tokenyard.draw").digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def sample(logits: torch.Tensor, draws: list[Draw]) -> list[Drawn]:
    """One token per row.

    logits: [n, V] float32
    draws: n
    """
    best, tokens = logits.max(dim=-1)
    sane = (best.isfinite()).tolist()  # max hands a NaN on
    greedy = tokens.tolist()
    return [
        Drawn(NO_NUMBERS) if not ok else Drawn(token) if _is_plain(draw.sampling) else _draw_one(row, draw)
        for ok, token, draw, row in zip(sane, greedy, draws, logits, strict=True)
    ]


def token_logprob(logprobs: torch.Tensor, token: int, count: int) -> TokenLogprob:
    """The entry of `token` and of the `count` likeliest, from logprobs [V]."""
    top: tuple[tuple[int, float], ...] = ()
    if count:
        values, ids = logprobs.topk(min(count, logprobs.shape[0]))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token, float(logprobs[token]), top)


def _is_plain(s: Sampling) -> bool:
    return s.temperature < _GREEDY_BELOW and s.logprobs is None and not s.shapes


def _draw_one(row: torch.Tensor, draw: Draw) -> Drawn:
    s = draw.sampling
    shaped = _shaped(row, draw) if s.shapes else row
    if s.shapes and shaped.max() == float("-inf"):
        return Drawn(NONE_LEFT)
    if s.temperature < _GREEDY_BELOW:
        token = int(shaped.argmax())
    else:
        kept = _kept(shaped / s.temperature, s)
        mass = kept.double().cumsum(0)
        point = uniform(s.seed, draw.choice, draw.index) * float(mass[-1])
        token = int(torch.searchsorted(mass, point, right=True))
        if token >= len(kept) or kept[token] == 0:  # rounding at the very end of the mass
            token = int(kept.nonzero()[-1])
    if s.logprobs is None:
        return Drawn(token)
    return Drawn(token, token_logprob(row.log_softmax(-1), token, s.logprobs))


def _shaped(row: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Logits after penalties (repetition over prompt and output, presence and frequency over the output), bias, and
    what is forbidden, which is -inf."""
    s = draw.sampling
    row = row.clone()
    if s.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(draw.tokens)), device=row.device)
        values = row[seen]
        row[seen] = torch.where(values > 0, values / s.repetition_penalty, values * s.repetition_penalty)
    output = Counter(draw.tokens[draw.prompt_len :])
    if output and (s.presence_penalty or s.frequency_penalty):
        ids = torch.tensor(list(output), device=row.device)
        counts = torch.tensor(list(output.values()), dtype=row.dtype, device=row.device)
        row[ids] -= s.frequency_penalty * counts + s.presence_penalty
    for token, bias in s.logit_bias:
        row[token] += bias
    row.clamp_(-_LARGEST, _LARGEST)
    if s.allowed_token_ids:
        allowed = torch.tensor(s.allowed_token_ids, device=row.device)
        row = torch.full_like(row, float("-inf")).index_copy_(0, allowed, row[allowed])
    forbidden = [token for token in _forbidden(draw) if token < len(row)]
    if forbidden:
        row[torch.tensor(forbidden, device=row.device)] = float("-inf")
    return row


def _forbidden(draw: Draw) -> list[int]:
    """Ids that may not come next: what would end the choice too early, and what would complete a bad word."""
    s = draw.sampling
    forbidden = list(s.end_ids) if draw.index < s.min_tokens else []
    for *before, last in s.bad_word_ids:
        start = len(draw.tokens) - len(before)
        if start >= draw.prompt_len and draw.tokens[start:] == before:
            forbidden.append(last)
    return forbidden


def _kept(scaled: torch.Tensor, s: Sampling) -> torch.Tensor:
    """[V] probabilities after top-k, top-p and min-p, in index order, not renormalised; what is cut is 0."""
    if s.top_k and s.top_k < scaled.shape[0]:
        least = scaled.topk(s.top_k).values[-1]
        scaled = scaled.masked_fill(scaled < least, float("-inf"))
    probs = scaled.softmax(-1)
    if s.top_p < 1.0:
        ordered, ids = probs.sort(descending=True, stable=True)
        before = ordered.cumsum(0) - ordered
        before[0] = -1.0  # the likeliest stays, however small top_p is: in float32 it may be 0
        probs = probs.index_fill(0, ids[before >= s.top_p], 0.0)
    if s.min_p > 0.0:
        probs = probs.masked_fill(probs < s.min_p * probs.max(), 0.0)
    return probs
