"""Which of the two ways a layer's dispatch goes, from the step's header alone: a pure rule, equal on every rank.

Shape letters: A members that bring tokens, R members that hold experts, K top-k.
"""

from enum import Enum

# What one more collective costs, as bytes that could travel instead: gloo on one machine takes 0.2 to 1 ms for a
# small one and moves 1 to 2 GB/s.
COLLECTIVE_BYTES = 1 << 20


class Mode(Enum):
    """PADDED: two collectives, each pair of ranks has room for all of the source's tokens.

    EXACT: three; the first brings everyone the top-k ids, from which all derive one split and every size.
    """

    PADDED = 2
    EXACT = 3


def choose_mode(tokens: tuple[int, ...], expert_ranks: int, top_k: int, row_bytes: int) -> Mode:
    """The cheaper mode for a step with `tokens` per member (A of them above zero).

    row_bytes: one token's part of a dispatch section. A token whose K experts fall evenly on R ranks misses a rank
    with probability (1 - 1/R)^K; the room kept for it is what padding wastes, on the busiest link.
    """
    missed = (1 - 1 / expert_ranks) ** top_k
    received = sum(tokens) * missed * row_bytes
    sent = max(tokens, default=0) * missed * row_bytes * (expert_ranks - 1)
    return Mode.EXACT if max(received, sent) > COLLECTIVE_BYTES else Mode.PADDED
