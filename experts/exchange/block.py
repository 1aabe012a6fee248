"""Blocks: the bytes one rank sends another in one layer, stamped with the step they belong to. Layout only.

A dispatch block: stamp, then room for rows of x, of slots and of weights, each part aligned. A combine block:
stamp, then rows of sums. An ids block: stamp, then top-k ids. Shape letters: N rows, H hidden, K top-k.
"""

from collections.abc import Sequence
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
    """Views into a dispatch block.

    x: [N, H]
    slots: [N, K] int32
    weights: [N, K] float32
    """

    x: torch.Tensor
    slots: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True, slots=True)
class BlockForm:
    """Sizes and views of blocks for one model. dtype: of activations, and of the sums that travel back."""

    hidden: int
    top_k: int
    dtype: torch.dtype

    def dispatch_bytes(self, rows: int) -> int:
        """Bytes of a block with room for `rows` rows."""
        return STAMP_BYTES + self._x_bytes(rows) + 2 * _aligned(rows * self.top_k * 4)

    def combine_bytes(self, rows: int) -> int:
        """Bytes of a block that brings `rows` sums back."""
        return STAMP_BYTES + self._x_bytes(rows)

    def ids_bytes(self, tokens: int) -> int:
        """Bytes of a block of int16 ids with room for `tokens` tokens."""
        return STAMP_BYTES + _aligned(tokens * self.top_k * 2)

    def dispatch_rows(self, block: torch.Tensor, room: int, count: int) -> DispatchRows:
        """Views of the first `count` rows of a dispatch block with room for `room`."""
        pairs, x_end = room * self.top_k * 4, STAMP_BYTES + self._x_bytes(room)
        w_start = x_end + _aligned(pairs)
        x = self.sums(block, count)
        slots = block[x_end : x_end + count * self.top_k * 4].view(torch.int32).view(count, self.top_k)
        weights = block[w_start : w_start + count * self.top_k * 4].view(torch.float32).view(count, self.top_k)
        return DispatchRows(x, slots, weights)

    def sums(self, block: torch.Tensor, count: int) -> torch.Tensor:
        """[count, H] view of a block's rows of activations or sums."""
        end = STAMP_BYTES + count * self.hidden * self.dtype.itemsize
        return block[STAMP_BYTES:end].view(self.dtype).view(count, self.hidden)

    def ids(self, block: torch.Tensor, count: int) -> torch.Tensor:
        """[count, K] int16 view of an ids block."""
        end = STAMP_BYTES + count * self.top_k * 2
        return block[STAMP_BYTES:end].view(torch.int16).view(count, self.top_k)

    def _x_bytes(self, rows: int) -> int:
        return _aligned(rows * self.hidden * self.dtype.itemsize)


def write_stamp(block: torch.Tensor, stamp: Stamp, count: int) -> None:
    """Open a block: whose it is, and how many rows follow."""
    fields = torch.tensor((*stamp, count, 0, 0, 0), dtype=torch.int64)
    block[:STAMP_BYTES].view(torch.int64).copy_(fields)


def read_stamp(block: torch.Tensor) -> tuple[Stamp, int]:
    """What `write_stamp` wrote."""
    epoch, step, layer, version, count, *_ = block[:STAMP_BYTES].view(torch.int64).tolist()
    return Stamp(epoch, step, layer, version), count


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGN) * _ALIGN


@dataclass(frozen=True, slots=True)
class Blocks:
    """One all-to-all's buffers: per member the bytes it gets and brings, none for some."""

    sent: torch.Tensor
    received: torch.Tensor
    send_bytes: list[int]
    receive_bytes: list[int]

    @classmethod
    def allocate(cls, size: int, send: dict[int, int], receive: dict[int, int], device: torch.device) -> "Blocks":
        """Fresh buffers for a group of `size`.

        send, receive: bytes by member
        """
        send_bytes = [send.get(member, 0) for member in range(size)]
        receive_bytes = [receive.get(member, 0) for member in range(size)]
        sent = torch.empty(sum(send_bytes), dtype=torch.uint8, device=device)
        received = torch.empty(sum(receive_bytes), dtype=torch.uint8, device=device)
        return cls(sent, received, send_bytes, receive_bytes)

    def to_send(self) -> Sequence[torch.Tensor]:
        """Per member, the block that it will get."""
        return self.sent.split(self.send_bytes)

    def arrived(self) -> Sequence[torch.Tensor]:
        """Per member, the block that it sent."""
        return self.received.split(self.receive_bytes)
