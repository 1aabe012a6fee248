"""Grouped SwiGLU against its plain statement and against a double-precision loop."""

from typing import Any

import pytest
import torch

from experts.slots import ffn
from experts.slots.ffn import grouped_mm_swiglu, grouped_swiglu, swiglu_reference
from tests.experts.swiglu_cases import case, exact

SHAPES = [
    (0, 2, 4, 16, 8),
    (1, 1, 1, 16, 8),
    (1, 3, 5, 40, 24),
    (7, 3, 5, 64, 48),
    (33, 4, 16, 96, 32),
    (130, 2, 3, 32, 64),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_is_the_reference(shape: tuple[int, int, int, int, int]) -> None:
    args = case(*shape, torch.float32)
    out, plain, truth = grouped_swiglu(*args), swiglu_reference(*args), exact(*args)
    assert out.dtype == torch.float32
    scale = truth.abs().max().item() if truth.numel() else 1.0
    for got in (out, plain):
        assert torch.allclose(got.double(), truth, atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_is_near_the_exact_value(shape: tuple[int, int, int, int, int]) -> None:
    args = case(*shape, torch.bfloat16)
    truth = exact(*args)
    scale = truth.abs().max().item() if truth.numel() else 1.0
    assert torch.allclose(grouped_swiglu(*args).double(), truth, atol=2e-2 * scale, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 5, 16, 17, 64])
def test_all_rows_to_one_slot(dtype: torch.dtype, rows: int) -> None:
    x, _, _, w13, w2 = case(rows, 1, 4, 48, 32, dtype)
    slots = torch.full((rows, 2), -1, dtype=torch.int32)
    slots[:, 1] = 2
    weights = torch.rand(rows, 2)
    truth = exact(x, slots, weights, w13, w2)
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    assert torch.allclose(
        grouped_swiglu(x, slots, weights, w13, w2).double(), truth, atol=limit * truth.abs().max().item(), rtol=0
    )


def test_slots_that_no_row_names_are_not_read() -> None:
    x, _, _, w13, w2 = case(3, 1, 4, 16, 8, torch.float32)
    w13[[0, 1, 3]] = float("nan")
    w2[[0, 1, 3]] = float("nan")
    slots = torch.tensor([[2], [2], [-1]], dtype=torch.int32)
    out = grouped_swiglu(x, slots, torch.ones(3, 1), w13, w2)
    assert out.isfinite().all()
    assert (out[2] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_product_over_all_slots(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    args = case(*shape, dtype)
    truth = exact(*args)
    limit = (1e-5 if dtype == torch.float32 else 2e-2) * (truth.abs().max().item() if truth.numel() else 1.0)
    got = grouped_mm_swiglu(*args)
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), truth, atol=limit, rtol=0)


def test_one_product_reads_no_row_of_a_pair_without_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows after the last group are written by nobody."""

    def spoiled(*args: Any, **named: Any) -> torch.Tensor:
        out = torch.nn.functional.grouped_mm(*args, **named)
        out[int(named["offs"][-1]) :] = float("nan")
        return out

    monkeypatch.setattr(ffn, "grouped_mm", spoiled)
    monkeypatch.setattr(ffn, "_SUM_ROWS", 3)
    x, slots, weights, w13, w2 = case(8, 2, 4, 16, 8, torch.float32)
    slots[:5, 1] = -1
    slots[7] = -1
    got = grouped_mm_swiglu(x, slots, weights, w13, w2)
    assert torch.allclose(got, swiglu_reference(x, slots, weights, w13, w2), atol=1e-5)
