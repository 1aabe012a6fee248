"""The C kernels as functions on torch tensors. Knows pointers and shapes; choosing when to call them is ffn's."""

import ctypes
import logging
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from experts import env
from experts.errors import UserError
from experts.exchange.waterfill import NORMAL, Waterfill
from experts.kernels.build import BuildFailed, best_target, library, processor_flags

log = logging.getLogger(__name__)

_P, _I = ctypes.c_void_p, ctypes.c_int64
_SPLIT: Any = [_P, _P, _I, ctypes.c_int, _P]
_QUOTAS: Any = [_P, _P, ctypes.c_int, _P]
_SWIGLU: Any = [ctypes.c_int, _P, _P, _P, _P, _P, _P, _I, _I, _I, _I, _I, ctypes.c_int]


class NativeKernels:
    """One built library."""

    def __init__(self, target: str) -> None:
        """Builds it if need be. Raises BuildFailed."""
        path = library(target)
        try:
            loaded = ctypes.CDLL(str(path))
        except OSError as error:
            raise BuildFailed(str(error)) from error
        self.target = target
        self.has_amx = target == "avx512" and "amx_bf16" in processor_flags()
        self._swiglu: Any = loaded.tokenyard_swiglu
        self._swiglu.argtypes, self._swiglu.restype = _SWIGLU, ctypes.c_int

        self._split: Any = loaded.tokenyard_split
        self._split.argtypes, self._split.restype = _SPLIT, None
        self._quotas: Any = loaded.tokenyard_quotas
        self._quotas.argtypes, self._quotas.restype = _QUOTAS, None

    def splitter(self, table: Waterfill) -> "SplitKernel":
        """The split of one layer's table; keeps the table's arrays alive."""
        return SplitKernel(table, self._split, self._quotas)

    def swiglu(
        self, x: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor
    ) -> torch.Tensor:
        """What `experts.ffn.swiglu_reference` states, for CPU tensors of float32 or bfloat16. Raises MemoryError."""
        x, slots, weights = x.contiguous(), slots.contiguous(), weights.contiguous()
        assert w13.is_contiguous(), w13.stride()
        assert w2.is_contiguous(), w2.stride()
        assert slots.dtype == torch.int32, slots.dtype
        assert weights.dtype == torch.float32, weights.dtype
        rows, hidden = x.shape
        out = torch.empty((rows, hidden), dtype=torch.float32)
        failed = self._swiglu(
            x.dtype == torch.bfloat16, x.data_ptr(), slots.data_ptr(), weights.data_ptr(), w13.data_ptr(),
            w2.data_ptr(), out.data_ptr(), rows, slots.shape[1], w13.shape[0], hidden, w2.shape[2],
            torch.get_num_threads(),
        )  # fmt: skip
        if failed:
            raise MemoryError(f"no memory for {rows} rows in the expert kernel")
        return out


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
        self._experts, self._copies = len(table.lookup) - 1, len(table.slot)
        self._table = _SplitTable(
            self._experts, table.ranks, len(table.expert), int((table.speed == NORMAL).all()),
            *(array.ctypes.data for array in self._arrays), table.floor, table.slack, table.sweeps,
        )  # fmt: skip
        self._at = ctypes.addressof(self._table)

    def split(self, ids: npt.NDArray[np.int16], turn: int) -> npt.NDArray[np.int32]:
        """Slots of ids, of the same shape; ids: contiguous int16, -1 = none."""
        slots = np.empty(ids.shape, dtype=np.int32)
        self._split(self._at, ids.ctypes.data, ids.size, turn, slots.ctypes.data)
        return slots

    def quotas(self, counts: npt.NDArray[np.int64], turn: int) -> npt.NDArray[np.int64]:
        """[C] tokens of each copy; counts: contiguous [E+1], "none" first."""
        assert counts.shape == (self._experts + 1,), counts.shape
        out = np.empty(self._copies, dtype=np.int64)
        self._quotas(self._at, counts.ctypes.data, turn, out.ctypes.data)
        return out


@cache
def native() -> NativeKernels | None:
    """This process's kernels; None where torch does the work, which is said once with its reason."""
    choice = env.kernel_choice()
    if choice == "torch":
        return None
    target = best_target(processor_flags()) if choice == "auto" else choice
    try:
        return NativeKernels(target)
    except BuildFailed as error:
        if choice != "auto":
            raise UserError(str(error), f"a C compiler that builds {choice} kernels", "TOKENYARD_KERNELS") from error
        log.warning("experts run on torch's kernels, which are slower: no C kernels for %s (%s)", target, error)
        return None
