"""A gate that follows made or recorded loads: which experts each token of a step picks. Pure numpy."""

import numpy as np
import numpy.typing as npt

Int16 = npt.NDArray[np.int16]


def ids_for(counts: npt.NDArray[np.int64], tokens: int, top_k: int, rng: np.random.Generator) -> Int16:
    """[T, K] int16 distinct experts per token, -1 = none, such that expert e is picked counts[e] times.

    counts: [E], each at most T. Where they add up to more than T * K, the largest are cut; where to less, pairs stay
    empty. Tokens come in random order.
    """
    wanted = np.minimum(counts, tokens)
    while (over := int(wanted.sum()) - tokens * top_k) > 0:
        wanted[np.argsort(-wanted, kind="stable")[: min(over, int((wanted > 0).sum()))]] -= 1
    flat = np.full(tokens * top_k, -1, dtype=np.int16)
    picks = np.repeat(np.arange(len(wanted)), wanted)
    flat[: len(picks)] = (
        picks  # token p mod T gets pick p: runs of one expert, at most T long, never meet a token twice
    )
    return flat.reshape(top_k, tokens).T[rng.permutation(tokens)]
