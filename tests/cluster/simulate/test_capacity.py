"""Capacity: known model facts, hand-computed cases, and what must rise and fall."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.simulate.capacity import Load, active_share, floor_tokens, predict, ranks_hit
from cluster.simulate.hardware import PROFILES, hardware
from experts.errors import UserError
from router_svc.models.registry import load_spec
from router_svc.models.spec import ModelSpec, attention_parameters

A13B = {
    "architectures": ["HunYuanMoEV1ForCausalLM"], "model_type": "hunyuan_v1_moe", "vocab_size": 128167,
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "attention_head_dim": 128, "head_dim": 128, "intermediate_size": 3072, "moe_intermediate_size": [3072],
    "num_experts": 64, "moe_topk": [8], "num_shared_expert": [1], "use_mixed_mlp_moe": True, "use_qk_norm": True,
    "use_cla": False, "norm_topk_prob": True, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 32768, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(A13B))
    return tmp_path


@pytest.fixture
def spec(folder: Path) -> ModelSpec:
    return load_spec(folder)


def test_the_models_size_is_known(spec: ModelSpec) -> None:
    experts = spec.experts.moe_layers * spec.experts.experts * spec.experts.parameters_per_expert
    total = experts + attention_parameters(spec)
    assert 79e9 < total < 81.5e9, "Hunyuan-A13B has 80 B parameters"
    active = experts / spec.experts.experts * spec.experts.top_k + attention_parameters(spec)
    assert 12e9 < active < 14e9, "of which 13 B are active"
    whole = predict(spec, hardware("h200"), 1, Load(1))
    assert 160e9 < whole.memory < 165e9
    assert not whole.fits
    assert "memory" in whole.limit


def test_expectations_by_hand() -> None:
    assert ranks_hit(1, 8) == 1
    assert ranks_hit(8, 1) == pytest.approx(1)
    assert ranks_hit(2, 2) == pytest.approx(1.5)


def test_one_token_reads_its_experts_once(spec: ModelSpec) -> None:
    machine = hardware("a100-80g")
    assert active_share(spec, 1) == pytest.approx(8 / 64)
    got = predict(spec, machine, 1, Load(1, excess=0))
    assert got.experts_read == pytest.approx(32 * 8 * 3 * 4096 * 3072 * 2 / machine.reading)
    assert got.network == 0
    assert got.limit.startswith("memory")


@pytest.mark.parametrize("machine", PROFILES, ids=lambda m: m.name)
def test_what_must_rise_and_fall(spec: ModelSpec, machine: object) -> None:
    counts = (1, 2, 4, 8, 16, 32, 64, 128, 320, 512)
    rows = [predict(spec, machine, n, Load(512)) for n in counts]  # type: ignore[arg-type]
    memory = [row.memory for row in rows]
    assert memory == sorted(memory, reverse=True)
    assert all(row.step > 0 for row in rows)
    batches = [predict(spec, machine, 8, Load(b)) for b in (1, 8, 64, 512, 4096)]  # type: ignore[arg-type]
    speeds = [row.tokens_per_second for row in batches]
    assert speeds == sorted(speeds)
    steps = [row.step for row in batches]
    assert steps == sorted(steps)
    even, uneven = (predict(spec, machine, 8, Load(512, excess=x)) for x in (0.0, 0.5))  # type: ignore[arg-type]
    assert uneven.step > even.step
    small = predict(spec, machine, 8, Load(64, weights="int4"))  # type: ignore[arg-type]
    assert small.memory < predict(spec, machine, 8, Load(64)).memory  # type: ignore[arg-type]


def test_the_floor_is_where_reading_takes_as_long_as_computing(spec: ModelSpec) -> None:
    machine = replace(hardware("a100-80g"), mfu=1.0, memory_share=1.0)
    assert floor_tokens(machine) == pytest.approx(312e12 / 2039e9, rel=1e-3)


def test_shapes_that_can_not_be(spec: ModelSpec) -> None:
    with pytest.raises(UserError, match="1 to 512 ranks"):
        predict(spec, hardware("h200"), 513, Load(1))
    with pytest.raises(UserError, match="at least 64"):
        predict(spec, hardware("h200"), 8, Load(1, slots=7))


def test_the_command(folder: Path) -> None:
    words = [sys.executable, "-m", "cluster.cli.main", "simulate", "--hardware", "a100-80g", "--model", str(folder)]
    done = subprocess.run([*words, "--ranks", "8,16,320", "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["ranks"] for line in done.stdout.splitlines()] == [8, 16, 320]
    for wrong, told in (
        (["--hardware", "tpu"], "one of a100-80g"), (["--ranks", "x"], "a number"), (["--model", "nowhere"], "nowhere"),
        (["--weights", "fp3"], "one of bfloat16"), (["--ranks", "8,600"], "1 to 512"),
    ):  # fmt: skip
        done = subprocess.run([*words, *wrong], capture_output=True, text=True, timeout=120)
        assert done.returncode == 2, wrong
        assert told in done.stderr
        assert done.stderr.count("\n") == 1


# tokens/s of the whole batch at batch 1, 16 and 32: vLLM in bf16 on H20, 2,048 tokens in and 14,336 out, from the README of
# Tencent's Hunyuan-A13B-Instruct. On two GPUs the larger batches' cache does not fit.
PUBLISHED = {2: {1: 111.72}, 4: {1: 158.90, 16: 779.10, 32: 1301.75}, 8: {1: 190.84, 16: 1246.54, 32: 1981.99}}


def test_predictions_beside_published_measurements(spec: ModelSpec) -> None:
    machine, context = hardware("h20"), 2048 + 14336 // 2
    ratios = {
        (gpus, batch): predict(spec, machine, gpus, Load(batch, context=context, excess=0)).tokens_per_second / seen
        for gpus, rows in PUBLISHED.items()
        for batch, seen in rows.items()
    }
    chosen_on = [ratio for (gpus, _), ratio in ratios.items() if gpus == 4]
    kept = [ratio for (gpus, _), ratio in ratios.items() if gpus != 4]
    assert all(0.9 < ratio < 1.1 for ratio in chosen_on), ratios
    assert all(0.9 < ratio < 1.2 for ratio in kept), ratios
    assert not predict(spec, machine, 2, Load(32, context=2048 + 14336)).fits
