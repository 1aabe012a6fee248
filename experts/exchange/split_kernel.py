"""The split of one layer's table in C: numpy arrays in and out. Knows no torch and no placement."""

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from experts.exchange.waterfill import NORMAL, Waterfill


class _SplitTable(ctypes.Structure):
    """split_table of split.c."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("experts", "ranks", "replicated", "even")),
        *((name, ctypes.c_void_p) for name in ("lookup", "home", "expert", "start", "rank", "slot", "speed")),
        ("floor", ctypes.c_int64),
        ("slack", ctypes.c_int64),
        ("sweeps", ctypes.c_int32),
    )


class SplitKernel:
    """tokenyard_split and tokenyard_quotas on one layer's table. Stateless between calls; safe from any thread."""

    def __init__(self, table: Waterfill, split: Any, quotas: Any) -> None:
        self._split, self._quotas = split, quotas
        self._arrays = (table.lookup, table.home, table.expert, table.start, table.rank, table.slot, table.speed)
        assert all(array.flags.c_contiguous for array in self._arrays)
        assert len(table.lookup) <= 1 << 15, f"{len(table.lookup) - 1} experts in 16 bits"
        self._count, self._copies = len(table.lookup) - 1, len(table.slot)
        self._table = _SplitTable(
            self._count, table.ranks, len(table.expert), int((table.speed == NORMAL).all()),
            *(array.ctypes.data for array in self._arrays), table.floor, table.slack, table.sweeps,
        )  # fmt: skip
        self.address = ctypes.addressof(self._table)

    def split(self, ids: npt.NDArray[np.int16], turn: int) -> npt.NDArray[np.int32]:
        """Slots of ids, of the same shape; ids: contiguous int16, -1 = none."""
        slots = np.empty(ids.shape, dtype=np.int32)
        self._split(self.address, ids.ctypes.data, ids.size, turn, slots.ctypes.data)
        return slots

    def quotas(self, counts: npt.NDArray[np.int64], turn: int) -> npt.NDArray[np.int64]:
        """[C] tokens of each copy; counts: contiguous [E+1], "none" first."""
        assert counts.shape == (self._count + 1,), counts.shape
        out = np.empty(self._copies, dtype=np.int64)
        self._quotas(self.address, counts.ctypes.data, turn, out.ctypes.data)
        return out
