"""One safetensors file, memory-mapped: header checked whole at opening, tensors handed out as views."""

import json
import mmap
import struct
import sys
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from experts.checkpoint.foreign import refuse_pointer
from experts.errors import UserError

READABLE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_OTHER_SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16"), 2),
    **dict.fromkeys(("U32", "I32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
_NORESERVE = 0x4000 if sys.platform == "linux" else 0  # MAP_NORESERVE, which Python 3.11 does not name
_HEADER_LIMIT = 100 << 20  # bytes, the format's own limit


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies: stored dtype's name, shape, first byte in the file and bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class SafetensorsFile:
    """Views into one mapped file. Thread-safe once built. The pages belong to the file, not to this process.

    Raises UserError when the header is broken, or its tensors do not fill the file exactly, as the format demands.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                start, header = self._header(file.read(8), size, file.read)
                # Private, so that it is writable, which torch wants of a buffer though nothing ever writes;
                # without reservation, since a shard may be larger than this machine's memory.
                flags = mmap.MAP_PRIVATE | _NORESERVE
                self._map = mmap.mmap(file.fileno(), 0, flags, mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError as error:
            raise self._bad(f"an unreadable file ({error.strerror})", "a safetensors file") from None
        self.entries = {name: self._entry(name, value, start) for name, value in header.items()}
        self._check_filled(start, size)

    def dtype(self, name: str) -> torch.dtype:
        """A stored tensor's dtype. Raises UserError when it is none that is read."""
        found = self.entries[name].dtype
        if found not in READABLE:
            raise self._bad(f"tensor {name} of dtype {found}", f"{', '.join(READABLE)} (no other is supported yet)")
        return READABLE[found]

    def view(self, name: str) -> torch.Tensor:
        """The tensor as stored, backed by the file's pages. Must not be written to."""
        entry, dtype = self.entries[name], self.dtype(name)
        if entry.nbytes == 0:
            return torch.empty(entry.shape, dtype=dtype)
        flat = torch.frombuffer(self._map, dtype=dtype, count=entry.nbytes // dtype.itemsize, offset=entry.offset)
        return flat.view(entry.shape)

    def read_ahead(self, offset: int, nbytes: int) -> None:
        """Ask the system to bring bytes [offset, offset + nbytes) of the file into its page cache."""
        first = offset - offset % mmap.PAGESIZE
        if nbytes:
            self._map.madvise(mmap.MADV_WILLNEED, first, offset + nbytes - first)

    def _header(self, prefix: bytes, size: int, read: Any) -> tuple[int, dict[str, Any]]:
        """(first byte of the data, entries without __metadata__) of a file of `size` bytes."""
        refuse_pointer(self.path, prefix, "a safetensors file")
        if len(prefix) < 8:
            raise self._bad(f"{size} bytes", "a safetensors header (truncated file?)")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(size - 8, _HEADER_LIMIT):
            raise self._bad(
                f"a header of {length} bytes in a file of {size}",
                f"a header inside the file, of at most {_HEADER_LIMIT}",
            )
        try:
            header = json.loads(read(length))
        except (ValueError, RecursionError):
            raise self._bad("a header that is no JSON", "a safetensors header") from None
        if not isinstance(header, dict):
            raise self._bad(f"a header of JSON {type(header).__name__}", "a JSON object")
        header.pop("__metadata__", None)
        return 8 + length, header

    def _entry(self, name: str, value: Any, start: int) -> Entry:
        try:
            dtype, shape = value["dtype"], tuple(value["shape"])
            begin, end = value["data_offsets"]
            whole = isinstance(dtype, str) and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise self._bad(f"a broken entry for tensor {name!r}", "dtype, shape and data_offsets")
        itemsize = READABLE[dtype].itemsize if dtype in READABLE else _OTHER_SIZES.get(dtype)
        if end < begin or (itemsize is not None and end - begin != prod(shape) * itemsize):
            raise self._bad(
                f"{end - begin} bytes for tensor {name!r}", f"{dtype} of shape {list(shape)} as its header entry says"
            )
        return Entry(dtype, shape, start + begin, end - begin)

    def _check_filled(self, start: int, size: int) -> None:
        place = start
        for name, entry in sorted(self.entries.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
            if entry.offset != place:
                raise self._bad(f"tensor {name!r} at byte {entry.offset}", f"byte {place}, where the one before ends")
            place += entry.nbytes
        if place != size:
            raise self._bad(f"a file of {size} bytes", f"{place} as its header says (truncated or overwritten?)")

    def _bad(self, found: str, expected: str) -> UserError:
        return UserError(found, expected, str(self.path))
