"""Keys of full KV blocks: a hash chain over token ids, so that equal prefixes have equal keys."""

from array import array
from hashlib import blake2b

BlockKey = bytes


class PrefixChain:
    """The keys of one sequence's full blocks, extended as tokens come. A key covers everything before it too."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._keys: list[BlockKey] = []

    def keys(self, tokens: list[int], blocks: int) -> list[BlockKey]:
        """Keys of the first `blocks` blocks of `tokens`, which must not change once hashed."""
        while len(self._keys) < blocks:
            start = len(self._keys) * self._block_size
            parent = self._keys[-1] if self._keys else b""
            ids = array("q", tokens[start : start + self._block_size])
            self._keys.append(blake2b(parent + ids.tobytes(), digest_size=16).digest())
        return self._keys[:blocks]
