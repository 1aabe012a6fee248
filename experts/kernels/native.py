"""The C kernels as functions on torch tensors. Knows pointers and shapes; choosing when to call them is ffn's."""

from functools import cache

import torch

from experts.kernels.loaded import LoadedKernels, loaded


class NativeKernels:
    """The kernels of one built library that work on tensors."""

    def __init__(self, library: LoadedKernels) -> None:
        self.target, self.has_amx = library.target, library.has_amx
        self._swiglu = library.swiglu

    def swiglu(
        self, x: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor
    ) -> torch.Tensor:
        """What `experts.slots.ffn.swiglu_reference` states, for CPU tensors of float32 or bfloat16. Raises MemoryError."""
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
    """This process's kernels; None where torch does the work."""
    library = loaded()
    return None if library is None else NativeKernels(library)
