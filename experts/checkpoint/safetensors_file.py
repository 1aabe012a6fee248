"""One safetensors file, memory-mapped: header checked whole at opening, tensors handed out as views."""

import json
import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from experts.errors import UserError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_UNREAD_SIZES = {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "U32": 4, "U64": 8}
_HEADER_LIMIT = 100 << 20  # bytes, the format's own limit


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies: stored dtype's name, shape, first byte in the file and bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class SafetensorsFile:
    """Views into one mapped file. Thread-safe once built. The pages belong to the file, not to this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        if size < 8:
            raise self._bad(f"{size} bytes", "a safetensors header")
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _HEADER_LIMIT):
                raise self._bad(f"a header of {length} bytes in a file of {size}", "a complete safetensors file")
            header = self._parse(file.read(length))
            # A private mapping is writable, which torch wants of a buffer; nothing ever writes to it.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.entries = {
            name: self._entry(name, value, 8 + length, size) for name, value in header.items() if name != "__metadata__"
        }

    def view(self, name: str) -> torch.Tensor:
        """The tensor as stored, backed by the file's pages. Must not be written to."""
        entry = self.entries[name]
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise self._bad(f"tensor {name} of dtype {entry.dtype}", "F32, F16 or BF16 (no quantised format is supported yet)")
        if entry.nbytes == 0:
            return torch.empty(entry.shape, dtype=dtype)
        flat = torch.frombuffer(self._map, dtype=dtype, count=entry.nbytes // dtype.itemsize, offset=entry.offset)
        return flat.view(entry.shape)

    def _parse(self, raw: bytes) -> dict[str, Any]:
        try:
            header = json.loads(raw)
        except ValueError:
            raise self._bad("a header that is no JSON", "a safetensors header") from None
        if not isinstance(header, dict):
            raise self._bad(f"a header of JSON {type(header).__name__}", "a JSON object")
        return header

    def _entry(self, name: str, value: Any, base: int, size: int) -> Entry:
        try:
            dtype, shape = value["dtype"], tuple(value["shape"])
            begin, end = value["data_offsets"]
            whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise self._bad(f"a broken entry for tensor {name!r}", "dtype, shape and data_offsets")
        itemsize = DTYPES[dtype].itemsize if dtype in DTYPES else _UNREAD_SIZES.get(dtype)
        if end < begin or (itemsize is not None and end - begin != prod(shape) * itemsize):
            raise self._bad(
                f"tensor {name} of {end - begin} bytes", f"{prod(shape)} elements of {dtype} as its shape {list(shape)} says"
            )
        if base + end > size:
            raise self._bad(f"{size} bytes", f"at least {base + end} as the header says (truncated file?)")
        return Entry(dtype, shape, base + begin, end - begin)

    def _bad(self, found: str, expected: str) -> UserError:
        return UserError(found, expected, str(self.path))
