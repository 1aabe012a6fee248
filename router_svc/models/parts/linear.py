"""A projection with its weight in the form that multiplies fastest here.

Measured on one core with AVX-512 BF16 and AMX (torch 2.13; a weight of 1536 x 1024 out of cache; microseconds for
1 / 8 / 32 / 128 / 1024 rows): bfloat16 F.linear 251 / 240 / 252 / 503 / 2877, W x^T 214 / 155 / 184 / 347 / 2109,
packed by oneDNN 151 / 146 / 165 / 284 / 2169; float32 F.linear 338 / 858 / 982 / 2517 / 15373,
W x^T 284 / 622 / 797 / 2581 / 15177, packed 424 / 477 / 862 / 2180 / 16227. With AVX2 only: bfloat16 F.linear
313 / 1384 / 5209 / 19956 / 170070 (W x^T: 201 for one row), float32 F.linear 398 / 731 / 1392 / 3940 / 26401.
So bfloat16 is packed where oneDNN multiplies it and widened to float32, a weight at a time, where it does not; W x^T
serves few rows elsewhere.
"""

import torch
from torch.nn import functional

_PACK_ROWS = 64  # the row count oneDNN packs for; that packing was the fastest, or even, from 1 to 1024 rows
_WIDE_ROWS = 6  # from here on a plain bfloat16 product costs more than widening its weight first
_MANY_ROWS = 48  # from here on F.linear is the faster of the plain forms


class Linear:
    """y = x W^T + b for x [T, M].

    weight: [N, M] in any float dtype
    bias: [N] or None
    keep: someone else needs the weight as it is (a tied embedding), so that packing would double it
    onednn: whether oneDNN multiplies bfloat16 here, None = find out
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, keep: bool = False, onednn: bool | None = None
    ) -> None:
        self._on_cpu = weight.device.type == "cpu"
        multiplies = _onednn_bfloat16() if onednn is None else onednn
        self._fast_bfloat16 = self._on_cpu and weight.dtype == torch.bfloat16 and multiplies
        self._widens = self._on_cpu and weight.dtype == torch.bfloat16 and not self._fast_bfloat16
        self._packed = not keep and self._fast_bfloat16
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS) if self._packed else weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, N] in the weight's dtype, contiguous."""
        if self._packed:
            y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
            return y
        if self._widens and x.shape[0] >= _WIDE_ROWS:
            bias = None if self._bias is None else self._bias.float()
            return functional.linear(x.float(), self._weight.float(), bias).to(x.dtype)
        if self._on_cpu and self._turned(x.shape[0]):
            y = torch.mm(self._weight, x.t()).t().contiguous()
            return y if self._bias is None else y.add_(self._bias)
        return functional.linear(x, self._weight, self._bias)

    def _turned(self, rows: int) -> bool:
        if rows == 1 or self._weight.dtype == torch.float32:
            return rows == 1 or 4 <= rows <= _MANY_ROWS
        return self._fast_bfloat16 and rows <= _MANY_ROWS


def _onednn_bfloat16() -> bool:
    """Whether this CPU and this torch multiply bfloat16 by oneDNN."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return torch.backends.mkldnn.is_available() and supported is not None and bool(supported())
