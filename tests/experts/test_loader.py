"""Filling slots from a checkpoint: the right tensors in the right rooms, whatever the names on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from experts.checkpoint.reader import CheckpointReader
from experts.errors import UserError
from experts.slots.loader import load_slots
from experts.slots.slots import ExpertSlots
from experts.spec import ExpertNames, ExpertsSpec

EXPERTS, HIDDEN, WIDTH = 6, 10, 4
NAMES = ExpertNames(
    gate="l{layer}.e{expert}.gate",
    up="l{layer}.e{expert}.up",
    down="l{layer}.e{expert}.down",
    fused_gate_up="l{layer}.gate_up",
    fused_down="l{layer}.fused_down",
)
SPEC = ExpertsSpec((1, 3), EXPERTS, (2, 2), HIDDEN, WIDTH, "silu", NAMES)


def write(folder: Path, fused: bool, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """A checkpoint and its experts: w13 [L, E, 2I, H], w2 [L, E, H, I]."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    w13 = torch.randn(2, EXPERTS, 2 * WIDTH, HIDDEN, generator=generator).to(dtype)
    w2 = torch.randn(2, EXPERTS, HIDDEN, WIDTH, generator=generator).to(dtype)
    tensors: dict[str, torch.Tensor] = {}
    for i, layer in enumerate(SPEC.layers):
        if fused:
            tensors[f"l{layer}.gate_up"], tensors[f"l{layer}.fused_down"] = w13[i].clone(), w2[i].clone()
            continue
        for expert in range(EXPERTS):
            tensors[f"l{layer}.e{expert}.gate"] = w13[i, expert, :WIDTH].clone()
            tensors[f"l{layer}.e{expert}.up"] = w13[i, expert, WIDTH:].clone()
            tensors[f"l{layer}.e{expert}.down"] = w2[i, expert].clone()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    return w13, w2


@pytest.mark.parametrize("fused", [False, True], ids=["single", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_slot_gets_its_expert(fused: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    w13, w2 = write(tmp_path / "c", fused)
    held = np.array([[5, 0, -1, 5], [2, 2, 1, -2]], dtype=np.int64)
    slots = ExpertSlots(SPEC, 4, dtype)
    told: list[tuple[int, int]] = []
    load_slots(slots, held, CheckpointReader(tmp_path / "c"), lambda done, total: told.append((done, total)))
    for layer in range(2):
        for slot, expert in enumerate(held[layer].tolist()):
            got13, got2 = slots.w13[layer][slot], slots.w2[layer][slot]
            if expert < 0:
                assert not got13.any()
                assert not got2.any()
            else:
                assert torch.equal(got13, w13[layer, expert].to(dtype))
                assert torch.equal(got2, w2[layer, expert].to(dtype))
    assert told[-1] == (slots.nbytes, slots.nbytes)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    write(tmp_path / "c", fused=False)
    with pytest.raises(UserError, match=r"no tensor l1\.e6\.gate"):
        load_slots(ExpertSlots(SPEC, 1, torch.float32), np.array([[6], [0]]), CheckpointReader(tmp_path / "c"))


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    write(tmp_path / "c", fused=False)
    wide = ExpertsSpec(SPEC.layers, EXPERTS, (2, 2), HIDDEN, WIDTH + 1, "silu", NAMES)
    with pytest.raises(UserError, match=r"tensor l1\.e0\.\w+ of shape"):
        load_slots(ExpertSlots(wide, 1, torch.float32), np.array([[0], [0]]), CheckpointReader(tmp_path / "c"))
