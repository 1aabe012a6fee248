"""Capacity: predicted step time, tokens/s and memory of a model on so many ranks, and what limits them. Arithmetic only.

Every rank holds attention and experts (colocated), or attention has ranks of its own. A step's parts follow one
another: attention, dispatch, experts, combine, layer by layer; nothing overlaps, as in the engine today.
Shape letters: B tokens of a step, R expert ranks, A attention ranks, E experts, K top-k, H hidden.
"""

from dataclasses import dataclass, fields
from typing import Any

from cluster.simulate.hardware import Hardware
from experts.errors import UserError
from router_svc.models.spec import ModelSpec, attention_parameters

WEIGHT_BYTES = {"bfloat16": 2.0, "int8": 1.03, "int4": 0.53}  # scales of groups of 128 in it
_ACTIVATION = 2.0  # bytes, bf16 on the wire and in the cache
_PAIR = 6.0  # bytes of a (slot, weight) pair
_BUFFERS = 2e9  # bytes of a rank beside weights and cache: runtime, workspace, staging
MOST_RANKS = 512


@dataclass(frozen=True, slots=True)
class Load:
    """tokens: B of a decode step over all ranks; context: tokens of each sequence in the cache; weights: a key of
    WEIGHT_BYTES; slots: of a rank per layer, 0 = just enough; excess: busiest rank over the mean, minus 1;
    attention_ranks: 0 = every rank holds both; prefill: the tokens are of prompts."""

    tokens: int
    context: int = 2048
    weights: str = "bfloat16"
    slots: int = 0
    excess: float = 0.02
    attention_ranks: int = 0
    prefill: bool = False


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds of a step by part; tokens_per_second; memory: bytes of the fullest rank; fits; limit: what to change."""

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

    def told(self) -> dict[str, Any]:
        """For `--json`."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def floor_tokens(machine: Hardware, weights: str = "bfloat16") -> float:
    """Tokens whose computing takes as long as reading an expert's weights: the split's floor."""
    return machine.work / 2 / (machine.reading / WEIGHT_BYTES[weights])


def predict(spec: ModelSpec, machine: Hardware, ranks: int, load: Load) -> Prediction:
    """One step of `load` on `ranks` expert ranks. Raises UserError for a shape that can't be."""
    if not 1 <= ranks <= MOST_RANKS:
        raise UserError(str(ranks), f"1 to {MOST_RANKS} ranks", "--ranks")
    slots = load.slots or -(-spec.experts.experts // ranks)
    if slots * ranks < spec.experts.experts:
        raise UserError(
            f"{slots * ranks} slots", f"at least {spec.experts.experts} (one per expert)", "--slots-per-rank"
        )
    read, compute = _experts(spec, machine, ranks, load)
    attention = _attention(spec, machine, ranks, load)
    network, latency = _network(spec, machine, ranks, load)
    experts = max(read, compute)
    step = experts + attention + network + latency
    memory = _memory(spec, ranks, slots, load)
    parts = {
        "reading expert weights": read if read >= compute else 0.0,
        "computing experts": compute if compute > read else 0.0,
        "attention": attention,
        "dispatch and combine": network,
        "latency of collectives and kernels": latency,
    }
    fits = memory <= machine.memory
    missing = f"memory: {memory / 1e9:.0f} GB a rank, {machine.memory / 1e9:.0f} there"
    limit = max(parts, key=lambda name: parts[name]) if fits else missing
    return Prediction(
        ranks, step, read, compute, attention, network, latency, load.tokens / step, memory, fits, limit
    )  # fmt: skip


def active_share(spec: ModelSpec, tokens: int) -> float:
    """Expected share of a layer's experts that B tokens touch, when all are picked alike."""
    return 1 - (1 - spec.experts.top_k / spec.experts.experts) ** tokens


def ranks_hit(ranks: int, top_k: int) -> float:
    """Expected distinct ranks among the K picks of a token."""
    return ranks * (1 - (1 - 1 / ranks) ** top_k)


def _experts(spec: ModelSpec, machine: Hardware, ranks: int, load: Load) -> tuple[float, float]:
    """Seconds of (reading, computing) on the busiest rank, over all layers; the longer of them is the time."""
    experts = spec.experts
    one = experts.parameters_per_expert
    active = experts.experts / ranks * active_share(spec, load.tokens)
    read = active * one * WEIGHT_BYTES[load.weights] / machine.reading
    pairs = load.tokens * experts.top_k / ranks
    compute = pairs * 2 * one / machine.work
    return (1 + load.excess) * read * experts.moe_layers, (1 + load.excess) * compute * experts.moe_layers


def _attention(spec: ModelSpec, machine: Hardware, ranks: int, load: Load) -> float:
    """Seconds of attention, norms, gates, shared experts and the head on one attention rank."""
    own = load.tokens / (load.attention_ranks or ranks)
    parameters = attention_parameters(spec)
    cache = 2 * spec.layers * spec.kv_heads * spec.head_dim * _ACTIVATION
    sequences = own if not load.prefill else max(own / load.context, 1)
    read = (parameters * WEIGHT_BYTES[load.weights] + sequences * load.context * cache) / machine.reading
    seen = load.context if not load.prefill else load.context / 2
    scores = 4 * own * seen * spec.heads * spec.head_dim * spec.layers
    return max(read, (2 * own * parameters + scores) / machine.work)


def _network(spec: ModelSpec, machine: Hardware, ranks: int, load: Load) -> tuple[float, float]:
    """Seconds of (bytes on the wire, latency) of dispatch and combine over all layers."""
    layers, top_k = spec.experts.moe_layers, spec.experts.top_k
    senders = load.attention_ranks or ranks
    colocated = not load.attention_ranks
    if ranks == 1 and colocated:
        return 0.0, layers * machine.layer_latency
    away = (ranks - 1) / ranks if colocated else 1.0
    rows = load.tokens * ranks_hit(ranks, top_k) * away  # token copies that leave their rank, in all
    out = rows * (spec.hidden * _ACTIVATION + top_k * _PAIR)
    back = rows * spec.hidden * _ACTIVATION
    inside = min(machine.ranks_per_node, ranks) - (1 if colocated else 0)
    near = max(inside, 0) / max(ranks - (1 if colocated else 0), 1)
    busiest = max(1 / senders, (1 + load.excess) / ranks)  # the share of the rank that sends or receives most
    seconds = 0.0
    for size in (out, back):
        share = size * busiest
        seconds += max(near * share / machine.link, (1 - near) * share / machine.network) / machine.network_share
    one = machine.link_latency if ranks <= machine.ranks_per_node else machine.network_latency
    collectives = 3 if load.prefill else 2
    return seconds * layers, (collectives * one + machine.layer_latency) * layers


def _memory(spec: ModelSpec, ranks: int, slots: int, load: Load) -> float:
    """Bytes of the fullest rank."""
    per_weight = WEIGHT_BYTES[load.weights]
    experts = slots * spec.experts.moe_layers * spec.experts.parameters_per_expert * per_weight
    own = load.tokens / (load.attention_ranks or ranks)
    sequences = own if not load.prefill else max(own / load.context, 1)
    cache = sequences * load.context * 2 * spec.layers * spec.kv_heads * spec.head_dim * _ACTIVATION
    attention = attention_parameters(spec) * per_weight + cache
    return (experts + attention if not load.attention_ranks else max(experts, attention)) + _BUFFERS
