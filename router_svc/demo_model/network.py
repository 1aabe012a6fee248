"""The Hunyuan MoE decoder in plain torch, made to train on CPUs: all experts of a layer run as one batched product.

Activations are flat, [T, H] for all tokens of a batch; only attention sees them in rows. Knows no files, no text and no schedule.

Shapes: T tokens, H hidden, E experts, K top-k, I expert width, A query heads, G key heads, D head size, B rows, S places in a row,
C places of an expert, V vocabulary.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """The numbers that config.json states."""

    vocab: int = 512
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    key_heads: int = 2
    head_size: int = 32
    experts: int = 64
    top_k: int = 8
    width: int = 48
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_alpha: float = 1000.0


@dataclass
class Cache:
    """Keys (after their norm) and values of one layer, each [B, G, S, D]."""

    keys: Tensor
    values: Tensor

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Appends new places and returns all of them."""
        self.keys, self.values = torch.cat((self.keys, keys), 2), torch.cat((self.values, values), 2)
        return self.keys, self.values


@dataclass
class Rows:
    """How flat tokens stand in rows: groups of rows of like length, [B, S] int64 token numbers, -1 = nothing there."""

    groups: list[Tensor]
    positions: Tensor
    caches: list[Cache] | None = None


@dataclass
class Routing:
    """What the routers did in one pass: per layer the probabilities [T, E] and the chosen experts [T, K]."""

    probabilities: list[Tensor] = field(default_factory=list)
    chosen: list[Tensor] = field(default_factory=list)


class RMSNorm(nn.Module):
    """x in fp32 over the root of its mean square, then the weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        return self.weight * (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class Spread(torch.autograd.Function):
    """Copies tokens to the places of their experts; the gradient collects them, so both ways are gathers."""

    @staticmethod
    def forward(ctx, x: Tensor, tokens: Tensor, places: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(places)
        return F.pad(x, (0, 0, 0, 1)).index_select(0, tokens)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (places,) = ctx.saved_tensors
        return sum_rows(grad, places), None, None


class Collect(torch.autograd.Function):
    """Sums each token's K places; the gradient spreads."""

    @staticmethod
    def forward(ctx, y: Tensor, tokens: Tensor, places: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(tokens)
        return sum_rows(y, places)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (tokens,) = ctx.saved_tensors
        return F.pad(grad, (0, 0, 0, 1)).index_select(0, tokens), None, None


def sum_rows(rows: Tensor, places: Tensor) -> Tensor:
    """Sum of rows[places[t, k]] over k, in fp32; the place just past the end is a row of zeros. -> [T, H]"""
    padded = F.pad(rows.float(), (0, 0, 0, 1))
    return F.embedding_bag(places, padded, mode="sum").to(rows.dtype)


def seat(chosen: Tensor, experts: int, most: int | None) -> tuple[Tensor, Tensor, int]:
    """Seats tokens at their experts: (tokens [E*C], T = nobody; places [T, K], E*C = no seat; C).

    C is the fullest expert's count, so nobody is left out, unless `most` is smaller.
    """
    count, k = chosen.shape
    flat = chosen.flatten()
    order = torch.argsort(flat, stable=True)
    loads = torch.bincount(flat, minlength=experts)
    capacity = int(loads.max()) if most is None else min(int(loads.max()), most)
    expert = flat[order]
    rank = torch.arange(len(flat)) - (loads.cumsum(0) - loads)[expert]
    place = torch.where(rank < capacity, expert * capacity + rank, experts * capacity)
    tokens = torch.full((experts * capacity + 1,), count)
    tokens[place] = order // k
    places = torch.empty_like(flat)
    places[order] = place
    return tokens[:-1], places.view(count, k), capacity


class Experts(nn.Module):
    """The router, E routed experts and the shared expert of one layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.router = nn.Parameter(torch.empty(shape.experts, shape.hidden))
        self.gate_up = nn.Parameter(torch.empty(shape.experts, 2 * shape.width, shape.hidden))
        self.down = nn.Parameter(torch.empty(shape.experts, shape.hidden, shape.width))
        self.shared_gate_up = nn.Parameter(torch.empty(2 * shape.width, shape.hidden))
        self.shared_down = nn.Parameter(torch.empty(shape.hidden, shape.width))

    def forward(self, x: Tensor, routing: Routing, capacity_factor: float | None) -> Tensor:
        shape = self.shape
        with torch.autocast("cpu", enabled=False):
            probabilities = F.linear(x.float(), self.router.float()).softmax(-1)
        weights, chosen = probabilities.topk(shape.top_k)
        routing.probabilities.append(probabilities)
        routing.chosen.append(chosen)
        most = None if capacity_factor is None else int(capacity_factor * len(x) * shape.top_k / shape.experts)
        tokens, places, capacity = seat(chosen, shape.experts, most)
        weights = F.pad((weights / weights.sum(-1, keepdim=True)).flatten(), (0, 1))
        owner = torch.full((len(tokens) + 1,), len(weights) - 1).index_copy(0, places.flatten(), torch.arange(len(weights) - 1))[:-1]
        seated = Spread.apply(x, tokens, places).view(shape.experts, capacity, shape.hidden)
        gate, up = torch.bmm(seated, self.gate_up.mT).chunk(2, -1)
        inner = F.silu(gate) * up * weights[owner].view(shape.experts, capacity, 1).to(gate.dtype)
        routed = Collect.apply(torch.bmm(inner, self.down.mT).flatten(0, 1), tokens, places)
        gate, up = F.linear(x, self.shared_gate_up).chunk(2, -1)
        return routed + F.linear(F.silu(gate) * up, self.shared_down)


class Attention(nn.Module):
    """Grouped-query attention; rope first, then the norm of queries and keys."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q = nn.Linear(shape.hidden, shape.heads * shape.head_size, bias=False)
        self.k = nn.Linear(shape.hidden, shape.key_heads * shape.head_size, bias=False)
        self.v = nn.Linear(shape.hidden, shape.key_heads * shape.head_size, bias=False)
        self.o = nn.Linear(shape.heads * shape.head_size, shape.hidden, bias=False)
        self.query_norm = RMSNorm(shape.head_size, shape.norm_eps)
        self.key_norm = RMSNorm(shape.head_size, shape.norm_eps)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], rows: Rows, layer: int) -> Tensor:
        size = self.shape.head_size
        queries, keys, values = (project(x).unflatten(-1, (-1, size)) for project in (self.q, self.k, self.v))
        queries, keys = self.query_norm(rotate(queries, *rotation)), self.key_norm(rotate(keys, *rotation))
        out = x.new_zeros(len(x) + 1, self.shape.heads * size, dtype=values.dtype)
        for group in rows.groups:
            q, k, v = (part[group.clamp(min=0)].transpose(1, 2) for part in (queries, keys, values))
            if rows.caches is not None:
                k, v = rows.caches[layer].extend(k, v)
            mixed = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), is_causal=q.shape[2] > 1, enable_gqa=True)
            target = torch.where(group < 0, len(x), group).flatten()
            out = out.index_copy(0, target, mixed.transpose(1, 2).flatten(0, 1).flatten(1).to(out.dtype))
        return self.o(out[:-1])


def rope_angles(positions: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """cos and sin, [T, 1, D], with Hunyuan's base: theta times alpha^(D/(D-2))."""
    size = shape.head_size
    base = shape.rope_theta * shape.rope_alpha ** (size / (size - 2))
    angles = positions.float()[:, None] * base ** (-torch.arange(0, size, 2).float() / size)
    angles = torch.cat((angles, angles), -1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rope with dimension i paired with i + D/2."""
    low, high = x.chunk(2, -1)
    return (x * cos + torch.cat((-high, low), -1) * sin).to(x.dtype)


class Block(nn.Module):
    """Attention, then experts, each on its normed input and added to it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention = Attention(shape)
        self.experts = Experts(shape)
        self.input_norm = RMSNorm(shape.hidden, shape.norm_eps)
        self.experts_norm = RMSNorm(shape.hidden, shape.norm_eps)


class Network(nn.Module):
    """Embedding, blocks, norm; the output head is the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.empty(shape.vocab, shape.hidden))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.norm_eps)

    def initialise(self, generator: torch.Generator) -> None:
        """Normal weights; what adds to the residual stream starts smaller."""
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if weight.dim() > 1:
                    weight.normal_(0.0, weight.shape[-1] ** -0.5, generator=generator)
                    if name.endswith(("down", "o.weight")):
                        weight.mul_((2 * self.shape.layers) ** -0.5)
            self.embedding.mul_(0.5)

    def new_caches(self, rows: int) -> list[Cache]:
        """Empty caches for `rows` rows."""
        shape = self.shape
        def empty() -> Tensor:
            return torch.empty(rows, shape.key_heads, 0, shape.head_size, dtype=self.embedding.dtype)
        return [Cache(empty(), empty()) for _ in range(shape.layers)]

    def forward(self, ids: Tensor, rows: Rows, capacity_factor: float | None = None) -> tuple[Tensor, Routing]:
        """Hidden states [T, H] after the last norm, and what the routers did. Dropless without a capacity factor."""
        routing = Routing()
        rotation = rope_angles(rows.positions, self.shape)
        x = F.embedding(ids, self.embedding)
        for layer, block in enumerate(self.blocks):
            x = x + block.attention(block.input_norm(x), rotation, rows, layer)
            x = x + block.experts(block.experts_norm(x), routing, capacity_factor)
        return self.norm(x), routing

    def logits(self, hidden: Tensor) -> Tensor:
        """[T, H] -> [T, V]"""
        return F.linear(hidden, self.embedding)
