"""Frames: the 64 bytes before each body on a link, as kernels/links.h has them. Layout only."""

import struct
from enum import IntEnum
from typing import NamedTuple

MAGIC = int.from_bytes(b"TLK1", "little")
FORMAT = 1  # of all that follows a hello on a link
HEAD_BYTES = 64
ROW = struct.Struct("<7q")  # a header's row
MOST_ROWS = 1 << 16  # of a header
_HEAD = struct.Struct("<QQQIIIIHBBI16x")


class Kind(IntEnum):
    """What a frame brings. ABORT: the epoch is broken. LEAVE: nothing more comes from here in this epoch."""

    MEET = 1
    HEADER = 2
    IDS = 3
    ROWS = 4
    SUMS = 5
    ABORT = 6
    LEAVE = 7


class Outcome(IntEnum):
    """How a call ended: see kernels/links.h."""

    DONE = 0
    OVER = 1
    LEFT = 2
    DEAD = 3
    LATE = 4
    MALFORMED = 5
    ASTRAY = 6
    NO_MEMORY = 7


class Frame(NamedTuple):
    """A head. size: bytes of the body; sequence: of its direction, from 0; incarnation: the sender's."""

    sequence: int
    step: int
    size: int
    epoch: int
    version: int
    rows: int
    incarnation: int
    layer: int
    kind: int
    flags: int = 0
    magic: int = MAGIC

    def pack(self) -> bytes:
        """As it travels."""
        return _HEAD.pack(*self)

    @classmethod
    def unpack(cls, head: bytes | bytearray | memoryview) -> "Frame":
        """From what travelled."""
        return cls(*_HEAD.unpack(head))

    def __str__(self) -> str:
        kind = Kind(self.kind).name if self.kind in set(Kind) else f"kind {self.kind}"
        where = f"epoch {self.epoch}, step {self.step}, layer {self.layer}, placement version {self.version}"
        return f"a frame {kind} of {where}, {self.rows} rows in {self.size} bytes"
