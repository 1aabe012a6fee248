"""Bytes and seconds of dispatch and combine: which copies of a token's row travel, on which wire, in which precision."""

from dataclasses import dataclass

from cluster.simulate.hardware import Hardware
from cluster.simulate.sizes import Sizes

_PAIR = 6.0  # bytes of a (slot, weight) pair
_COMBINED = 2.0  # bytes of a value on the way back, bf16 in every exchange


@dataclass(frozen=True, slots=True)
class Exchange:
    """value: bytes of a dispatched value
    per_node: one copy of a row crosses to a node, whose links pass it on
    """

    value: float
    per_node: bool = False


# fp8: with a float32 scale per 128 values, as DeepEP sends it (its low-latency kernels); per node: its normal kernels.
EXCHANGES = {"bf16": Exchange(2.0), "fp8": Exchange(1 + 4 / 128), "fp8-per-node": Exchange(1 + 4 / 128, True)}


def ranks_hit(ranks: int, top_k: int) -> float:
    """Expected distinct ranks among the K picks of a token."""
    return ranks * (1 - (1 - 1 / ranks) ** top_k)


def exchanged(
    kind: Exchange, machine: Hardware, sizes: Sizes, tokens: int, ranks: int, senders: int, away: bool, excess: float
) -> float:
    """Seconds of one layer's bytes on the busiest wire. away: no sender is an expert rank."""
    linked, crossing = _copies(kind, machine, sizes, tokens, ranks, away)
    busiest = max(1 / senders, (1 + excess) / ranks)  # the share of the rank that sends or receives most
    seconds = 0.0
    for row in (sizes.hidden * kind.value + sizes.top_k * _PAIR, sizes.hidden * _COMBINED):
        seconds += max(linked / machine.link, crossing / machine.network) * row * busiest
    return seconds / machine.network_share


def _copies(
    kind: Exchange, machine: Hardware, sizes: Sizes, tokens: int, ranks: int, away: bool
) -> tuple[float, float]:
    """Rows, of all ranks in one direction, that travel on (links inside nodes, the network between nodes)."""
    hit = ranks_hit(ranks, sizes.top_k)
    nodes = -(-ranks // machine.ranks_per_node)
    if kind.per_node and nodes > 1:
        crossing = ranks_hit(nodes, sizes.top_k) * (1.0 if away else (nodes - 1) / nodes)
        return tokens * hit * (1.0 if away else (ranks - 1) / ranks), tokens * crossing
    others = ranks if away else ranks - 1
    near = (min(machine.ranks_per_node, ranks) - (not away)) / others
    rows = tokens * hit * others / ranks
    return near * rows, (1 - near) * rows
