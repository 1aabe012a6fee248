"""Capacity: known model facts, hand-computed cases, and what must rise and fall."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.cli.main import main
from cluster.simulate.capacity import Load, active_share, floor_tokens, predict
from cluster.simulate.exchange import ranks_hit
from cluster.simulate.hardware import PROFILES, hardware
from cluster.simulate.model_sizes import load_sizes
from cluster.simulate.sizes import Sizes
from experts.errors import UserError
from router_svc.models.registry import load_spec
from tests.cluster.simulate.published import (
    A13B,
    CASES,
    DEEPEP_MICROSECONDS,
    DEEPSEEK_V3,
    Case,
    predicted,
    predicted_exchange,
    sizes_of,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(A13B))
    return tmp_path


@pytest.fixture
def sizes(folder: Path) -> Sizes:
    return load_sizes(folder)


def test_the_models_size_is_known(sizes: Sizes) -> None:
    experts = sizes.moe_layers * sizes.experts * sizes.expert
    total = experts + sizes.attention
    assert 79e9 < total < 81.5e9, "Hunyuan-A13B has 80 B parameters"
    active = experts / sizes.experts * sizes.top_k + sizes.attention
    assert 12e9 < active < 14e9, "of which 13 B are active"
    whole = predict(sizes, hardware("h200"), 1, Load(1))
    assert 160e9 < whole.memory < 165e9
    assert not whole.fits
    assert "memory" in whole.limit


def test_expectations_by_hand() -> None:
    assert ranks_hit(1, 8) == 1
    assert ranks_hit(8, 1) == pytest.approx(1)
    assert ranks_hit(2, 2) == pytest.approx(1.5)


def test_one_token_reads_its_experts_once(sizes: Sizes) -> None:
    machine = hardware("a100-80g")
    assert active_share(sizes, 1) == pytest.approx(8 / 64)
    got = predict(sizes, machine, 1, Load(1, excess=0))
    assert got.experts_read == pytest.approx(32 * 8 * 3 * 4096 * 3072 * 2 / (2039e9 * 0.8))
    assert got.network == 0
    assert got.limit.startswith("memory")


@pytest.mark.parametrize("machine", PROFILES, ids=lambda m: m.name)
def test_what_must_rise_and_fall(sizes: Sizes, machine: object) -> None:
    counts = (1, 2, 4, 8, 16, 32, 64, 128, 320, 512)
    rows = [predict(sizes, machine, n, Load(512)) for n in counts]  # type: ignore[arg-type]
    memory = [row.memory for row in rows]
    assert memory == sorted(memory, reverse=True)
    assert all(row.step > 0 for row in rows)
    batches = [predict(sizes, machine, 8, Load(b)) for b in (1, 8, 64, 512, 4096)]  # type: ignore[arg-type]
    speeds = [row.tokens_per_second for row in batches]
    assert speeds == sorted(speeds)
    steps = [row.step for row in batches]
    assert steps == sorted(steps)
    even, uneven = (predict(sizes, machine, 8, Load(512, excess=x)) for x in (0.0, 0.5))  # type: ignore[arg-type]
    assert uneven.step > even.step
    small = predict(sizes, machine, 8, Load(64, weights="int4"))  # type: ignore[arg-type]
    assert small.memory < predict(sizes, machine, 8, Load(64)).memory  # type: ignore[arg-type]


def test_deepseek_v3_by_arithmetic_only(tmp_path: Path) -> None:
    sizes = sizes_of(DEEPSEEK_V3)
    total = sizes.attention + sizes.moe_layers * sizes.experts * sizes.expert
    assert 670e9 < total < 672e9, "DeepSeek-V3 has 671 B parameters"
    active = sizes.attention + sizes.moe_layers * sizes.top_k * sizes.expert
    assert 36.5e9 < active < 38e9, "of which 37 B are active"
    assert sizes.cache == 61 * (512 + 64)
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V3))
    with pytest.raises(UserError, match="deepseek_v3"):
        load_spec(tmp_path)  # served it is not


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_published_figures(case: Case) -> None:
    got = predicted(case)
    assert got.fits
    assert 1 / case.band < got.tokens_per_second / case.published < case.band


@pytest.mark.parametrize("gpus", DEEPEP_MICROSECONDS)
def test_published_exchange(gpus: int) -> None:
    assert predicted_exchange(gpus) == pytest.approx(DEEPEP_MICROSECONDS[gpus], rel=0.25)


def test_shards_exchange_and_overlap(sizes: Sizes) -> None:
    machine = hardware("h100-80g")
    plain = predict(sizes, machine, 16, Load(4096))
    split = predict(sizes, machine, 16, Load(4096, shards=8))
    assert split.memory < plain.memory
    assert split.latency > plain.latency
    assert predict(sizes, machine, 16, Load(4096, exchange="fp8")).network < plain.network
    per_node = predict(sizes, machine, 16, Load(4096, exchange="fp8-per-node"))
    assert per_node.network < predict(sizes, machine, 16, Load(4096, exchange="fp8")).network
    hidden = predict(sizes, machine, 16, Load(65536, prefill=True, overlap=True))
    assert hidden.step < predict(sizes, machine, 16, Load(65536, prefill=True)).step


def test_the_floor_is_where_reading_takes_as_long_as_computing(sizes: Sizes) -> None:
    machine = replace(hardware("a100-80g"), mfu=1.0, memory_share=1.0)
    assert floor_tokens(machine) == pytest.approx(312e12 / 2039e9, rel=1e-3)


def test_shapes_that_can_not_be(sizes: Sizes) -> None:
    with pytest.raises(UserError, match="1 to 512 ranks"):
        predict(sizes, hardware("h200"), 513, Load(1))
    with pytest.raises(UserError, match="at least 64"):
        predict(sizes, hardware("h200"), 8, Load(1, slots=7))
    with pytest.raises(UserError, match="that divide 12 ranks"):
        predict(sizes, hardware("h200"), 12, Load(1, shards=8))


def test_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tokenyard", "simulate", "--hardware", "a100-80g", "--model", str(folder)]

    def run(*more: str) -> int:
        monkeypatch.setattr(sys, "argv", [*words, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    assert run("--ranks", "8,16,320", "--json") == 0
    assert [json.loads(line)["ranks"] for line in capsys.readouterr().out.splitlines()] == [8, 16, 320]
    for wrong, told in (
        (["--hardware", "tpu"], "one of a100-80g"), (["--ranks", "x"], "a number"), (["--model", "nowhere"], "nowhere"),
        (["--weights", "fp3"], "one of bfloat16"),
        (["--exchange", "x"], "one of bf16"), (["--shards", "3"], "divide 8"), (["--ranks", "8,600"], "1 to 512"),
    ):  # fmt: skip
        assert run(*wrong) == 2, wrong
        printed = capsys.readouterr().err
        assert told in printed
        assert printed.count("\n") == 1
