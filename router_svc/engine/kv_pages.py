"""Book-keeping of KV blocks: who holds which, what may be reused, what is evicted. No torch, no clock."""

from collections import OrderedDict

from router_svc.engine.prefix import BlockKey


class KVPages:
    """A fixed number of blocks, each free, held by sequences (counted), or cached: full, unheld and findable by key.

    A block's content is named by a key that covers all tokens up to its end; blocks with equal keys are equal.
    """

    def __init__(self, blocks: int) -> None:
        self.total = blocks
        self._free = list(range(blocks - 1, -1, -1))
        self._holders = [0] * blocks
        self._key_of: dict[int, BlockKey] = {}
        self._block_of: dict[BlockKey, int] = {}
        self._taken: list[int] = []  # since the last `newly_taken`
        self._cached: OrderedDict[int, None] = OrderedDict()  # unheld blocks with a key, oldest first

    @property
    def available(self) -> int:
        """Blocks that can be taken now, cached ones included."""
        return len(self._free) + len(self._cached)

    @property
    def held(self) -> int:
        """Blocks that sequences hold."""
        return self.total - self.available

    @property
    def cached(self) -> int:
        """Unheld blocks whose content may be reused."""
        return len(self._cached)

    def take(self, count: int) -> list[int] | None:
        """`count` blocks to write, evicting the longest unused cached ones; None when there are too few."""
        if count > self.available:
            return None
        blocks = []
        for _ in range(count):
            block = self._free.pop() if self._free else self._evict()
            self._holders[block] = 1
            blocks.append(block)
        self._taken += blocks
        return blocks

    def newly_taken(self) -> list[int]:
        """Blocks taken since the last call: whatever lies in them is someone else's and must be cleared."""
        taken, self._taken = self._taken, []
        return taken

    def match(self, keys: list[BlockKey]) -> list[int]:
        """The longest run of blocks that hold the first of `keys`, without taking them."""
        blocks = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def share(self, blocks: list[int]) -> None:
        """Hold blocks that `match` found."""
        for block in blocks:
            if not self._holders[block]:
                del self._cached[block]
            self._holders[block] += 1

    def reusable(self, blocks: list[int]) -> int:
        """How many of these matched blocks are unheld, so that holding them uses up available ones."""
        return sum(not self._holders[block] for block in blocks)

    def publish(self, block: int, key: BlockKey) -> None:
        """Make a full, written block findable; a key that another block already has changes nothing."""
        if key not in self._block_of and block not in self._key_of:
            self._key_of[block] = key
            self._block_of[key] = block

    def forget(self, blocks: list[int]) -> None:
        """Make blocks unfindable, since what was computed in them is no good; who shares them keeps them."""
        for block in blocks:
            key = self._key_of.pop(block, None)
            if key is not None:
                del self._block_of[key]

    def release(self, blocks: list[int]) -> None:
        """Let go of blocks. The last of a sequence goes first into the cache's queue, so prefixes outlive tails."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            assert self._holders[block] >= 0, f"block {block} released more often than held"
            if self._holders[block]:
                continue
            if block in self._key_of:
                self._cached[block] = None
            else:
                self._free.append(block)

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        del self._block_of[self._key_of.pop(block)]
        return block
