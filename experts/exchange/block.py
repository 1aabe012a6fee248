"""One source's rows for one rank as bytes: a preamble that names the moment, then activations, weights, slots.

Shape letters: N rows, H hidden, K top-k.
"""

from dataclasses import dataclass

import torch

PREAMBLE = 8  # int64 words: epoch, step, layer, version, rows, and room


@dataclass(frozen=True, slots=True)
class Moment:
    """When a payload belongs."""

    epoch: int
    step: int
    layer: int
    version: int


@dataclass(frozen=True, slots=True)
class BlockForm:
    """How blocks of one group are laid out: sections one after the other, each aligned for its dtype."""

    hidden: int
    top_k: int
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of a row over all sections."""
        return self.hidden * self.dtype.itemsize + self.top_k * 8

    def nbytes(self, rows: int) -> int:
        """Bytes of a block with room for `rows` rows."""
        return PREAMBLE * 8 + rows * self.row_bytes

    def sections(self, block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Views into a block's bytes: preamble [8] int64, weights [room, K] float32, slots [room, K] int32, x [room, H]."""
        room = (block.numel() - PREAMBLE * 8) // self.row_bytes
        start, pairs = PREAMBLE * 8, room * self.top_k * 4
        weights = block[start : start + pairs].view(torch.float32).view(room, self.top_k)
        slots = block[start + pairs : start + 2 * pairs].view(torch.int32).view(room, self.top_k)
        x = block[start + 2 * pairs :].view(self.dtype).view(room, self.hidden)
        return block[:start].view(torch.int64), weights, slots, x

    def write(
        self, block: torch.Tensor, moment: Moment, x: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor
    ) -> None:
        """Fill a block with N rows; what is behind them is never read."""
        preamble, block_weights, block_slots, block_x = self.sections(block)
        rows = x.shape[0]
        words = (moment.epoch, moment.step, moment.layer, moment.version, rows, 0, 0, 0)
        preamble.copy_(torch.tensor(words, dtype=torch.int64))
        block_weights[:rows] = weights
        block_slots[:rows] = slots
        block_x[:rows] = x
