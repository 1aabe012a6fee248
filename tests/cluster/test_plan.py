"""What `serve` refuses before anything starts: model, memory, slots, ports, placement."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.config import ServeConfig
from cluster.plan import check_port, make_plan
from experts.errors import UserError
from router_svc.demo_model.path import checkpoint_path
from tests import checkpoints

CONFIG = ServeConfig(dtype="float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("mixtral", tmp_path_factory.mktemp("plan") / "mixtral")


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_port_in_use() -> None:
    with taken_port() as port, pytest.raises(UserError, match=rf"port {port} in use"):
        check_port("127.0.0.1", port, "--grpc-port")
    with pytest.raises(UserError, match="--host"):
        check_port("no such host", 0, "--grpc-port")


def test_memory_is_checked_with_the_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = psutil.virtual_memory()._replace(available=500 << 20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(UserError, match=r"0\.5 GiB of free memory, expected 1\.\d GiB"):
        make_plan(folder, CONFIG, check_ports=False)


def test_more_experts_than_slots(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", slot_expert=np.zeros((3, 4), np.int64))
    with pytest.raises(UserError, match="expected at least 8"):
        make_plan(folder, replace(CONFIG, placement=tmp_path / "few.npz"), check_ports=False)
    np.savez(tmp_path / "layers.npz", slot_expert=np.tile(np.arange(8), (2, 1)))
    with pytest.raises(UserError, match="2 layers"):
        make_plan(folder, replace(CONFIG, placement=tmp_path / "layers.npz"), check_ports=False)


def test_lengths_and_cache(folder: Path) -> None:
    with pytest.raises(UserError, match="--max-model-len"):
        make_plan(folder, replace(CONFIG, max_model_len=5000), check_ports=False)
    with pytest.raises(UserError, match="--kv-cache-memory-bytes"):
        make_plan(folder, replace(CONFIG, kv_cache_memory_bytes=10_000), check_ports=False)
    longer = make_plan(checkpoint_path(), replace(CONFIG, max_model_len=4096), check_ports=False)
    assert longer.engine.max_model_len == 4096


def test_seats_are_numbered_experts_first(folder: Path) -> None:
    plan = make_plan(folder, replace(CONFIG, attention_workers=2, expert_workers=3), check_ports=False)
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
        make_plan(made, CONFIG, check_ports=False)
    assert tensor in str(caught.value)
