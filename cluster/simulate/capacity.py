"""Capacity: predicted step time, tokens/s and memory of a model on so many ranks, and what limits them. Arithmetic only.

Every rank holds attention and experts (colocated), or attention has ranks of its own. A step's parts follow one another:
attention, dispatch, experts, combine, layer by layer, as in the engine today. With `overlap`, half of the tokens is on
the wire while the other half is computed. What the engine does not do (overlap, shards, other exchanges, MLA) is here to
compare the model with published figures of engines that do.
Shape letters: B tokens of a step, R expert ranks, A attention ranks, E experts, K top-k, H hidden.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

from cluster.simulate.exchange import EXCHANGES, exchanged
from cluster.simulate.hardware import Hardware
from cluster.simulate.sizes import Sizes
from experts.errors import UserError

# Scales are in it: of groups of 128 weights, for fp8 of squares of 128 x 128.
WEIGHT_BYTES = {"bfloat16": 2.0, "fp8": 1.0, "int8": 1.03, "int4": 0.53}
_ACTIVATION = 2.0  # bytes, bf16 in the cache and between shards
_HIDDEN = 0.55  # of the shorter of work and wire, where they overlap; from one decode figure, see docs/balancing.md
_BUFFERS = 2e9  # bytes of a rank beside weights and cache: runtime, workspace, staging
MOST_RANKS = 512


@dataclass(frozen=True, slots=True)
class Load:
    """tokens: B of a step over all ranks
    context: tokens of each sequence in the cache
    weights: a key of WEIGHT_BYTES
    slots: of a rank per layer, 0 = just enough
    excess: busiest rank over the mean, minus 1
    attention_ranks: 0 = every rank holds both
    prefill: the tokens are of prompts
    shards: ranks of a node that split attention's weights and heads (tensor parallel)
    exchange: a key of EXCHANGES
    overlap: of two half batches
    """

    tokens: int
    context: int = 2048
    weights: str = "bfloat16"
    slots: int = 0
    excess: float = 0.02
    attention_ranks: int = 0
    prefill: bool = False
    shards: int = 1
    exchange: str = "bf16"
    overlap: bool = False


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds of a step by part.

    tokens_per_second
    memory: bytes of the fullest rank
    fits
    limit: what to change
    """

    ranks: int
    step: float
    experts_read: float
    experts_compute: float
    attention: float
    network: float
    latency: float
    tokens_per_second: float
    memory: float
    fits: bool
    limit: str

    def figures(self) -> dict[str, Any]:
        """For `--json`."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, slots=True)
class _Parts:
    """Seconds of one batch.

    network: bytes on the wire
    collectives: their latency
    kernels: the layers' small ones
    """

    read: float
    compute: float
    attention: float
    network: float
    collectives: float
    kernels: float

    @property
    def work(self) -> float:
        return max(self.read, self.compute) + self.attention + self.kernels

    @property
    def wire(self) -> float:
        return self.network + self.collectives


def floor_tokens(machine: Hardware, weights: str = "bfloat16") -> float:
    """Tokens whose computing takes as long as reading an expert's weights: the split's floor."""
    return machine.work_on(weights) / 2 / (machine.reading / WEIGHT_BYTES[weights])


def predict(sizes: Sizes, machine: Hardware, ranks: int, load: Load) -> Prediction:
    """One step of `load` on `ranks` expert ranks. Raises UserError for a shape that can't be."""
    slots = load.slots or -(-sizes.experts // max(ranks, 1))
    _check(sizes, machine, ranks, slots, load)
    batches = 2 if load.overlap else 1
    one = _parts(sizes, machine, ranks, replace(load, tokens=-(-load.tokens // batches)))
    hidden = _HIDDEN * min(one.work, one.wire) if load.overlap else 0.0
    step = batches * (one.work + one.wire - hidden)
    read, compute, attention = batches * one.read, batches * one.compute, batches * one.attention
    network, latency = batches * one.network, batches * (one.collectives + one.kernels)
    parts = {
        "reading expert weights": read if read >= compute else 0.0,
        "computing experts": compute if compute > read else 0.0,
        "attention": attention,
        "dispatch and combine": network,
        "latency of collectives and kernels": latency,
    }
    memory = _memory(sizes, ranks, slots, load)
    fits = memory <= machine.memory
    missing = f"memory: {memory / 1e9:.0f} GB a rank, {machine.memory / 1e9:.0f} there"
    limit = max(parts, key=lambda name: parts[name]) if fits else missing
    return Prediction(
        ranks, step, read, compute, attention, network, latency, load.tokens / step, memory, fits, limit
    )  # fmt: skip


def active_share(sizes: Sizes, tokens: int) -> float:
    """Expected share of a layer's experts that B tokens touch, when all are picked alike."""
    return 1 - (1 - sizes.top_k / sizes.experts) ** tokens


def _check(sizes: Sizes, machine: Hardware, ranks: int, slots: int, load: Load) -> None:
    if not 1 <= ranks <= MOST_RANKS:
        raise UserError(str(ranks), f"1 to {MOST_RANKS} ranks", "--ranks")
    if slots * ranks < sizes.experts:
        raise UserError(f"{slots * ranks} slots", f"at least {sizes.experts} (one per expert)", "--slots-per-rank")
    if load.weights not in WEIGHT_BYTES:
        raise UserError(repr(load.weights), f"one of {', '.join(WEIGHT_BYTES)}", "--weights")
    if load.exchange not in EXCHANGES:
        raise UserError(repr(load.exchange), f"one of {', '.join(EXCHANGES)}", "--exchange")
    holders = load.attention_ranks or ranks
    if not 1 <= load.shards <= machine.ranks_per_node or holders % load.shards:
        most = f"1 to {machine.ranks_per_node} (a node) that divide {holders} ranks"
        raise UserError(f"{load.shards} shards", most, "--shards")


def _parts(sizes: Sizes, machine: Hardware, ranks: int, load: Load) -> _Parts:
    """Seconds of one batch of load.tokens."""
    read, compute = _experts(sizes, machine, ranks, load)
    network, collectives = _network(sizes, machine, ranks, load)
    kernels = machine.layer_latency * sizes.moe_layers
    return _Parts(read, compute, _attention(sizes, machine, ranks, load), network, collectives, kernels)


def _experts(sizes: Sizes, machine: Hardware, ranks: int, load: Load) -> tuple[float, float]:
    """Seconds of (reading, computing) on the busiest rank, over all layers; the longer of them is the time."""
    active = sizes.experts / ranks * active_share(sizes, load.tokens)
    read = active * sizes.expert * WEIGHT_BYTES[load.weights] / machine.reading
    pairs = load.tokens * sizes.top_k / ranks
    compute = pairs * 2 * sizes.expert / machine.work_on(load.weights)
    return (1 + load.excess) * read * sizes.moe_layers, (1 + load.excess) * compute * sizes.moe_layers


def _attention(sizes: Sizes, machine: Hardware, ranks: int, load: Load) -> float:
    """Seconds of attention, norms, gates, shared experts and the head on one attention rank."""
    own = load.tokens / (load.attention_ranks or ranks)  # of a rank; shards hold a part of more tokens' heads
    weights = sizes.attention / load.shards * WEIGHT_BYTES[load.weights]
    read = (weights + _cached(sizes, own, load)) / machine.reading
    seen, scores = (load.context / 2, sizes.prompt_scores) if load.prefill else (load.context, sizes.scores)
    products = 2 * own * sizes.attention / machine.work_on(load.weights)
    return max(read, products + own * seen * scores / machine.work)


def _cached(sizes: Sizes, own: float, load: Load) -> float:
    """Bytes of the cache of `own` tokens' sequences."""
    sequences = max(own / load.context, 1) if load.prefill else own
    return sequences * load.context * sizes.cache * _ACTIVATION


def _network(sizes: Sizes, machine: Hardware, ranks: int, load: Load) -> tuple[float, float]:
    """Seconds of (bytes on the wire, latency) of dispatch and combine, and of the shards' sums, over all layers."""
    senders = load.attention_ranks or ranks
    away = load.attention_ranks > 0
    wire, latency = _shard_sums(sizes, machine, senders, load)
    if ranks > 1 or away:
        one = machine.link_latency if ranks <= machine.ranks_per_node else machine.network_latency
        wire += exchanged(EXCHANGES[load.exchange], machine, sizes, load.tokens, ranks, senders, away, load.excess)
        latency += (3 if load.prefill else 2) * one
    return wire * sizes.moe_layers, latency * sizes.moe_layers


def _shard_sums(sizes: Sizes, machine: Hardware, senders: int, load: Load) -> tuple[float, float]:
    """Seconds of (bytes, latency) of adding up the shards' outputs after attention, one layer; a ring's bytes."""
    if load.shards == 1:
        return 0.0, 0.0
    rows = load.tokens / senders * load.shards
    sent = 2 * (load.shards - 1) / load.shards * rows * sizes.hidden * _ACTIVATION
    return sent / machine.link / machine.network_share, machine.link_latency


def _memory(sizes: Sizes, ranks: int, slots: int, load: Load) -> float:
    """Bytes of the fullest rank."""
    per_weight = WEIGHT_BYTES[load.weights]
    experts = slots * sizes.moe_layers * sizes.expert * per_weight
    own = load.tokens / (load.attention_ranks or ranks)
    attention = sizes.attention / load.shards * per_weight + _cached(sizes, own, load)
    return (experts + attention if not load.attention_ranks else max(experts, attention)) + _BUFFERS
