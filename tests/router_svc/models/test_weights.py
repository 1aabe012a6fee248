"""Loading the attention side: what is read, what is refused, and how far along it says it is."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from experts.checkpoint.reader import CheckpointReader, Job
from experts.errors import UserError
from router_svc.models.decoder import build_model
from router_svc.models.registry import load_spec
from router_svc.models.spec import attention_bytes, expert_bytes
from tests import checkpoints


class Noting(CheckpointReader):
    """Remembers what was read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.read: list[str] = []

    def read_many(self, jobs: list[Job], *rest: object) -> None:  # type: ignore[override]
        self.read.extend(name for name, _, _ in jobs)
        super().read_many(jobs, *rest)  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", sorted(checkpoints.ARCHITECTURES))
def test_everything_but_the_routed_experts_is_read_once(architecture: str) -> None:
    folder = checkpoints.shared(architecture)
    spec, reader = load_spec(folder), Noting(folder)
    seen: list[tuple[int, int]] = []
    build_model(spec, reader, torch.float32, "cpu", lambda done, total: seen.append((done, total)))
    assert sorted(reader.read) == [name for name in reader.names() if ".experts." not in name]
    total = attention_bytes(spec, torch.float32)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    stored = sum(torch.Size(reader.shape(name)).numel() * 4 for name in reader.names())
    routed = expert_bytes(spec, torch.float32) * spec.experts.experts * spec.experts.moe_layers
    assert total + routed == stored


def own(folder: Path, architecture: str, *change: tuple[str, torch.Tensor | None]) -> Path:
    """A copy in one file with tensors replaced, or dropped (None)."""
    shutil.copytree(checkpoints.shared(architecture), folder)
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(path))
        path.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    for name, tensor in change:
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("model.layers.1.self_attn.k_proj.weight", None, "no tensor model.layers.1.self_attn.k_proj.weight"),
        ("model.layers.1.self_attn.k_proj.weight", torch.zeros(31, 48), "of shape [31, 48], expected [32, 48]"),
        ("model.norm.weight", torch.zeros(47), "model.norm.weight of shape [47], expected [48]"),
        ("lm_head.weight", None, "no tensor lm_head.weight"),
        ("model.layers.2.mlp.gate.weight", torch.zeros(12, 48, dtype=torch.int32), "gate.weight of dtype I32"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path: Path, name: str, tensor: torch.Tensor | None, words: str) -> None:
    folder = own(tmp_path / "c", "qwen3_moe", (name, tensor))
    with pytest.raises(UserError) as caught:
        build_model(load_spec(folder), CheckpointReader(folder), torch.float32, "cpu")
    assert words in str(caught.value)


def test_a_tied_checkpoints_copy_of_the_head_is_ignored(tmp_path: Path) -> None:
    folder = own(tmp_path / "c", "hunyuan_v1_moe", ("lm_head.weight", torch.full((3, 3), 7.0)))
    reader = Noting(folder)
    build_model(load_spec(folder), reader, torch.float32, "cpu")
    assert "lm_head.weight" not in reader.read


def test_a_config_of_another_shape_than_its_tensors(tmp_path: Path) -> None:
    folder = own(tmp_path / "c", "mixtral")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(UserError, match=r"no tensor model\.layers\.3\."):
        build_model(load_spec(folder), CheckpointReader(folder), torch.float32, "cpu")
