"""What `serve` refuses before anything starts: model, memory, slots, ports, placement."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.config import ServeConfig
from cluster.limits import check_processes
from cluster.plan import Balancing, make_plan
from experts.errors import UserError
from router_svc.demo_model.path import checkpoint_path
from tests import checkpoints

CONFIG = ServeConfig(dtype="float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("mixtral", tmp_path_factory.mktemp("plan") / "mixtral")


def test_memory_is_checked_with_the_numbers(folder: Path) -> None:
    with pytest.raises(UserError, match=r"GiB of free memory, expected 3276[89]\.\d+ GiB \(experts 0\.00, attention"):
        make_plan(folder, replace(CONFIG, kv_cache_memory_bytes=1 << 45), check_ports=False, check_text=False)


def test_gpus_are_counted(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Ray would wait for ever for the second one."""

    def device(wanted: str, expert_workers: int, gpus: int) -> str:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        config = replace(CONFIG, device=wanted, expert_workers=expert_workers)
        return make_plan(folder, config, check_ports=False, check_text=False).device

    assert device("auto", 0, 1) == device("cuda", 0, 1) == device("auto", 2, 3) == "cuda"
    assert device("cpu", 2, 3) == device("auto", 2, 0) == "cpu"
    assert not caplog.records
    assert device("auto", 2, 1) == "cpu"
    assert "3 ranks take 3 GPUs and here are 1" in caplog.text
    with pytest.raises(UserError, match="1 of the 3 GPUs that 3 ranks take, expected one for each rank, or --expert"):
        device("cuda", 2, 1)
    with pytest.raises(UserError, match="no CUDA device"):
        device("cuda", 2, 0)


def test_copies_of_each_expert(folder: Path) -> None:
    def copies(**options: object) -> int:
        config = replace(CONFIG, **options)  # type: ignore[arg-type]
        return make_plan(folder, config, check_ports=False, check_text=False).min_copies

    assert copies() == copies(num_redundant_experts=6) == copies(expert_workers=0) == 1
    assert copies(num_redundant_experts=8) == copies(num_redundant_experts=30) == 2
    assert copies(num_redundant_experts=8, min_copies=1) == 1
    assert copies(num_redundant_experts=16, expert_workers=3, min_copies=3) == 3
    with pytest.raises(UserError, match="found 2 with 14 slots for 8 experts, expected --num-redundant-experts 8"):
        copies(num_redundant_experts=6, min_copies=2)
    with pytest.raises(UserError, match="--min-copies: found 3, expected at most 2, the ranks that hold experts"):
        copies(num_redundant_experts=64, min_copies=3)


def test_processes_are_checked_before_torch_takes_memory() -> None:
    with pytest.raises(UserError, match=r"GiB of free memory, expected 1600\.78 GiB \(processes 1600\.78\)"):
        check_processes(ServeConfig(attention_workers=4096, expert_workers=2))


def test_more_experts_than_slots(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", slot_expert=np.zeros((3, 4), np.int64))
    with pytest.raises(UserError, match="expected at least 8"):
        make_plan(folder, replace(CONFIG, placement=tmp_path / "few.npz"), check_ports=False, check_text=False)
    np.savez(tmp_path / "layers.npz", slot_expert=np.tile(np.arange(8), (2, 1)))
    with pytest.raises(UserError, match="2 layers"):
        make_plan(folder, replace(CONFIG, placement=tmp_path / "layers.npz"), check_ports=False, check_text=False)


def test_lengths_and_cache(folder: Path) -> None:
    with pytest.raises(UserError, match="--max-model-len"):
        make_plan(folder, replace(CONFIG, max_model_len=5000), check_ports=False, check_text=False)
    with pytest.raises(UserError, match="--kv-cache-memory-bytes"):
        make_plan(folder, replace(CONFIG, kv_cache_memory_bytes=10_000), check_ports=False, check_text=False)
    longer = make_plan(checkpoint_path(), replace(CONFIG, max_model_len=4096), check_ports=False, check_text=False)
    assert longer.engine.max_model_len == 4096


def test_seats_are_numbered_experts_first(folder: Path) -> None:
    plan = make_plan(
        folder, replace(CONFIG, attention_workers=2, expert_workers=3), check_ports=False, check_text=False
    )
    assert [(s.rank, s.role) for s in plan.seats] == [
        (0, "expert"), (1, "expert"), (2, "expert"), (3, "attention"), (4, "attention"),
    ]  # fmt: skip
    assert plan.placement.slot_expert.shape == (3, 9)


def rewrite(folder: Path, name: str, changed: torch.Tensor | None) -> None:
    """Replace a tensor of a checkpoint of one file; None drops it."""
    path = folder / "model.safetensors"
    stored = load_file(path)
    del stored[name]
    save_file(stored if changed is None else {**stored, name: changed}, path)


@pytest.mark.parametrize(
    ("tensor", "change", "expected"),
    [
        ("model.layers.2.self_attn.k_proj.weight", torch.zeros(24, 47), r"\[24, 47\], expected \[24, 48\]"),
        ("model.layers.1.block_sparse_moe.gate.weight", torch.zeros(7, 48), r"\[7, 48\], expected \[8, 48\]"),
        ("lm_head.weight", torch.zeros(320, 48, dtype=torch.int8), "dtype I8, expected F32"),
        ("model.norm.weight", None, "no tensor model.norm.weight"),
        (
            "model.layers.2.block_sparse_moe.experts.7.w2.weight",
            torch.zeros(48, 63),
            r"\[48, 63\], expected \[48, 64\]",
        ),
        ("model.layers.0.block_sparse_moe.experts.3.w1.weight", None, "no tensor"),
    ],
)
def test_tensors_are_checked(tensor: str, change: torch.Tensor | None, expected: str, tmp_path: Path) -> None:
    made = checkpoints.make("mixtral", tmp_path / "broken")
    rewrite(made, tensor, change)
    with pytest.raises(UserError, match=expected) as caught:
        make_plan(made, CONFIG, check_ports=False, check_text=False)
    assert tensor in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"), [("tokenizer.json", "{"), ("chat_template.jinja", "{% if"), ("generation_config.json", "{")]
)
def test_what_text_needs_is_read_before_anything_starts(tmp_path: Path, name: str, text: str) -> None:
    made = checkpoints.make("mixtral", tmp_path / "mixtral")
    checkpoints.write_tokenizer(made)
    make_plan(made, CONFIG, check_ports=False)
    (made / name).write_text(text)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        make_plan(made, CONFIG, check_ports=False)
    make_plan(made, CONFIG, check_ports=False, check_text=False)


def test_balancing_is_on_with_two_ranks_that_hold_experts(folder: Path) -> None:
    def balancing(**options: object) -> Balancing:
        return make_plan(folder, replace(CONFIG, **options), check_ports=False).balancing  # type: ignore[arg-type]

    assert balancing(expert_workers=2) == Balancing(True)
    assert balancing(attention_workers=2, expert_workers=0, colocate=True) == Balancing(True)
    assert balancing(expert_workers=2, enable_eplb=False) == Balancing(False, "--no-enable-eplb")
    assert not balancing(expert_workers=1).enabled
    with pytest.raises(UserError, match="--eplb-policy: found policy 'oracle', which looks into the future"):
        balancing(expert_workers=2, eplb_policy="oracle")


WITHOUT_COMPILER = """
from cluster.config import ServeConfig
from cluster.plan import balancing_of
from experts.errors import UserError
print(balancing_of(ServeConfig()))
try:
    balancing_of(ServeConfig(enable_eplb=True))
except UserError as error:
    print(error)
"""


def test_without_a_compiler_balancing_is_off_and_says_why(tmp_path: Path) -> None:
    folders = dict.fromkeys(("XDG_CACHE_HOME", "TMPDIR"), str(tmp_path))
    command = [sys.executable, "-c", WITHOUT_COMPILER]
    surroundings = os.environ | folders | {"CC": "no-such-compiler"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=surroundings)
    off, refused = done.stdout.splitlines()
    assert off.startswith("Balancing(enabled=False, reason='the planner needs a C compiler (no C compiler")
    assert "expected a C compiler" in refused
