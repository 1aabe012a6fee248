"""Room: where the rows that arrive at a member are put together, layer after layer. Of both forms of circles."""

from collections.abc import Sequence

import torch

from experts.exchange.links.circle import Sizes
from experts.exchange.wire import ExpertBatch

_FIRST = 16  # rows
_KEPT = 1024  # batches of views


class Room:
    """Its tensors are others after `grow`.

    x: [most rows, H]
    slots: [most rows, K] int32
    weights: [most rows, K] float32
    """

    x: torch.Tensor
    slots: torch.Tensor
    weights: torch.Tensor

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._make(_FIRST)

    def grow(self, tokens: Sequence[int]) -> bool:
        """Have room for so many tokens of each member; whether there was too little."""
        rows = sum(count for count in tokens if count > 0)  # peers say them
        if rows <= self.x.shape[0]:
            return False
        self._make(rows)
        return True

    def batch(self, counts: tuple[int, ...]) -> ExpertBatch:
        """The first rows, of so many from each member."""
        known = self._batches.get(counts)
        if known is not None:
            return known
        n = sum(counts)
        batch = ExpertBatch(self.x[:n], self.slots[:n], self.weights[:n], counts)
        if len(self._batches) < _KEPT:
            self._batches[counts] = batch
        return batch

    def _make(self, rows: int) -> None:
        sizes = self._sizes
        self.x = torch.empty((rows, sizes.hidden), dtype=sizes.dtype)
        self.slots = torch.empty((rows, sizes.top_k), dtype=torch.int32)
        self.weights = torch.empty((rows, sizes.top_k), dtype=torch.float32)
        self._batches: dict[tuple[int, ...], ExpertBatch] = {}  # views that were asked for before
