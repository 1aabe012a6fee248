"""The C kernels as functions on torch tensors. Knows pointers and shapes; choosing when to call them is ffn's."""

import ctypes
import logging
from functools import cache
from typing import Any

import torch

from experts import env
from experts.errors import UserError
from experts.kernels.build import BuildFailed, best_target, library, processor_flags

log = logging.getLogger(__name__)

_P, _I = ctypes.c_void_p, ctypes.c_int64
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
