"""How a layer's dispatch goes, from the step's header alone: pure rules, equal on every rank.

Two collectives (PADDED: each pair of ranks has room for all of the source's tokens) or three (EXACT: the first brings
everyone the top-k ids, from which all derive one split and every size). Shape letters: R expert ranks, K top-k.
"""

# What one more collective costs, as bytes that could travel instead: gloo on one machine takes 0.2 to 1 ms for a
# small one and moves 1 to 2 GB/s.
COLLECTIVE_BYTES = 1 << 20


def bucket(tokens: int) -> int:
    """Rows that a pair of ranks has room for: a power of two up to 8, then a multiple of 8, so that few sizes occur."""
    return 1 << (tokens - 1).bit_length() if 0 < tokens <= 8 else -(-tokens // 8) * 8


def pads(
    tokens: tuple[int, ...], expert_ranks: int, top_k: int, row_bytes: int, collective_bytes: int = COLLECTIVE_BYTES
) -> bool:
    """Whether padding costs less than a third collective.

    tokens: per member
    row_bytes: one token's, both ways
    collective_bytes: what a collective costs

    A token whose K experts fall evenly on R ranks misses one of them with probability (1 - 1/R)^K: what is kept for
    it there, on the busiest link, is the waste.
    """
    hit = 1 - (1 - 1 / expert_ranks) ** top_k
    waste = [(bucket(n) - n * hit) * row_bytes for n in tokens]
    return max(sum(waste), max(waste) * (expert_ranks - 1)) <= collective_bytes
