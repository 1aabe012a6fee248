"""The C kernels, every build that this machine can run, against exact sums; and life without a compiler."""

import logging
from pathlib import Path

import pytest
import torch

from experts import env
from experts.errors import UserError
from experts.kernels.build import BuildFailed, best_target, library, processor_flags
from experts.kernels.loaded import LoadedKernels, loaded
from experts.kernels.native import NativeKernels, native
from experts.slots.ffn import grouped_swiglu, torch_from
from tests.experts.swiglu_cases import case, exact

FLAGS = processor_flags()
TARGETS = [t for t in ("avx512", "avx2", "portable") if t == "portable" or best_target(FLAGS) in ("avx512", t)]
# rows, top-k, slots, hidden, width: odd sizes leave tails; 70 rows of 2 slots pass a block in two parts.
SHAPES = [
    (1, 1, 1, 16, 8), (1, 3, 5, 40, 24), (2, 2, 2, 7, 5), (3, 2, 9, 33, 31), (5, 3, 4, 64, 48), (9, 2, 3, 100, 70),
    (33, 4, 16, 96, 32), (70, 2, 2, 48, 40), (200, 1, 3, 32, 33),
]  # fmt: skip


@pytest.fixture(scope="module", params=TARGETS)
def kernels(request: pytest.FixtureRequest) -> NativeKernels:
    return NativeKernels(LoadedKernels(request.param))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_exact_within_rounding(
    kernels: NativeKernels, shape: tuple[int, int, int, int, int], dtype: torch.dtype
) -> None:
    args = case(*shape, dtype, seed=sum(shape))
    truth = exact(*args)
    limit = (1e-5 if dtype == torch.float32 else 1e-2) * max(truth.abs().max().item(), 1e-3)
    assert torch.allclose(kernels.swiglu(*args).double(), truth, atol=limit, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_alone_and_in_company(kernels: NativeKernels, dtype: torch.dtype) -> None:
    x, slots, weights, w13, w2 = case(40, 3, 5, 72, 56, dtype)
    together = kernels.swiglu(x, slots, weights, w13, w2)
    for n in range(0, 40, 7):
        alone = kernels.swiglu(x[n : n + 1], slots[n : n + 1], weights[n : n + 1], w13, w2)
        assert torch.equal(alone[0], together[n])


def test_bits_do_not_depend_on_threads(kernels: NativeKernels) -> None:
    args = case(23, 3, 5, 72, 56, torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(kernels.swiglu(*args))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_extreme_gates_stay_finite(kernels: NativeKernels) -> None:
    x = torch.tensor([[1e4, -1e4, 1e-40, 0.0]])
    w13 = torch.eye(4).repeat(2, 1).unsqueeze(0).contiguous()
    out = kernels.swiglu(x, torch.zeros((1, 1), dtype=torch.int32), torch.ones(1, 1), w13, torch.eye(4).unsqueeze(0))
    assert torch.allclose(out, torch.tensor([[1e8, 0.0, 0.0, 0.0]]))
    nan = kernels.swiglu(
        x * float("nan"), torch.zeros((1, 1), dtype=torch.int32), torch.ones(1, 1), w13, torch.eye(4).unsqueeze(0)
    )
    assert nan.isnan().all()


def test_rows_that_go_nowhere_are_zero(kernels: NativeKernels) -> None:
    x, slots, weights, w13, w2 = case(3, 2, 4, 16, 8, torch.float32)
    out = kernels.swiglu(x, torch.full_like(slots, -1), weights, w13, w2)
    assert not out.any()


def test_without_a_compiler_torch_does_it_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.cache_clear()
    loaded.cache_clear()
    try:
        args = case(4, 2, 3, 16, 8, torch.float32)
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert torch.allclose(grouped_swiglu(*args).double(), exact(*args), atol=1e-4)
        assert [record.message for record in caplog.records if "no C kernels" in record.message] != []
        assert len(caplog.records) == 1
    finally:
        native.cache_clear()
        loaded.cache_clear()


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'error: no such target' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BuildFailed, match="no such target"):
        library("portable")
    assert not list((tmp_path / "tokenyard" / "kernels").iterdir())


def test_an_unknown_choice_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENYARD_KERNELS", "mmx")
    with pytest.raises(UserError, match="found 'mmx', expected one of auto"):
        env.kernel_choice()


def test_the_processor_decides() -> None:
    assert best_target({"avx2", "fma", "sse2"}) == "avx2"
    assert best_target(set()) == "portable"
    assert best_target({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx2", "fma"}) == "avx512"
    assert torch_from("avx2", False, torch.bfloat16) > 1e9
