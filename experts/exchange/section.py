"""Sections: the bytes one rank sends another in one layer, stamped with the step they belong to. Layout only.

A dispatch section: stamp, then room for rows of x, of slots and of weights, each block aligned. A combine section:
stamp, then rows of sums. An ids section: stamp, then top-k ids. Shape letters: N rows, H hidden, K top-k.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

STAMP_BYTES = 64  # eight int64: the five of Stamp and its count, then zeros
_ALIGN = 16


class Stamp(NamedTuple):
    """What every payload names: a receiver refuses one that is not of its own step."""

    epoch: int
    step: int
    layer: int
    version: int


@dataclass(frozen=True, slots=True)
class DispatchRows:
    """Views into a dispatch section: x [N, H], slots [N, K] int32, weights [N, K] float32."""

    x: torch.Tensor
    slots: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True, slots=True)
class SectionLayout:
    """Sizes and views of sections for one model. dtype: of activations, and of the sums that travel back."""

    hidden: int
    top_k: int
    dtype: torch.dtype

    def dispatch_bytes(self, rows: int) -> int:
        """Bytes of a section with room for `rows` rows."""
        return STAMP_BYTES + self._x_bytes(rows) + 2 * _aligned(rows * self.top_k * 4)

    def combine_bytes(self, rows: int) -> int:
        """Bytes of a section that brings `rows` sums back."""
        return STAMP_BYTES + self._x_bytes(rows)

    def ids_bytes(self, tokens: int) -> int:
        """Bytes of a section of int16 ids with room for `tokens` tokens."""
        return STAMP_BYTES + _aligned(tokens * self.top_k * 2)

    def dispatch_rows(self, section: torch.Tensor, room: int, count: int) -> DispatchRows:
        """Views of the first `count` rows of a dispatch section with room for `room`."""
        pairs, x_end = room * self.top_k * 4, STAMP_BYTES + self._x_bytes(room)
        w_start = x_end + _aligned(pairs)
        x = self.sums(section, count)
        slots = section[x_end : x_end + count * self.top_k * 4].view(torch.int32).view(count, self.top_k)
        weights = section[w_start : w_start + count * self.top_k * 4].view(torch.float32).view(count, self.top_k)
        return DispatchRows(x, slots, weights)

    def sums(self, section: torch.Tensor, count: int) -> torch.Tensor:
        """[count, H] view of a section's rows of activations or sums."""
        end = STAMP_BYTES + count * self.hidden * self.dtype.itemsize
        return section[STAMP_BYTES:end].view(self.dtype).view(count, self.hidden)

    def ids(self, section: torch.Tensor, count: int) -> torch.Tensor:
        """[count, K] int16 view of an ids section."""
        end = STAMP_BYTES + count * self.top_k * 2
        return section[STAMP_BYTES:end].view(torch.int16).view(count, self.top_k)

    def _x_bytes(self, rows: int) -> int:
        return _aligned(rows * self.hidden * self.dtype.itemsize)


def write_stamp(section: torch.Tensor, stamp: Stamp, count: int) -> None:
    """Open a section: whose it is, and how many rows follow."""
    fields = torch.tensor((*stamp, count, 0, 0, 0), dtype=torch.int64)
    section[:STAMP_BYTES].view(torch.int64).copy_(fields)


def read_stamp(section: torch.Tensor) -> tuple[Stamp, int]:
    """What `write_stamp` wrote."""
    epoch, step, layer, version, count, *_ = section[:STAMP_BYTES].view(torch.int64).tolist()
    return Stamp(epoch, step, layer, version), count


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGN) * _ALIGN
