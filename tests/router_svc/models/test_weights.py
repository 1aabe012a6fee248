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
from router_svc.models.weights import as_stored
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


def head_and_embedding(folder: Path) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """The loaded head and embedding, float32 [V, H] each, and whether they are one tensor."""
    model = build_model(load_spec(folder), CheckpointReader(folder), torch.float32, "cpu")
    weights = model._weights
    rows = torch.eye(weights.embed.shape[1])
    return weights.head(rows).T, weights.embed, weights.head._weight is weights.embed


def test_the_head_that_is_stored_is_used(tmp_path: Path) -> None:
    """Hunyuan's config here says that head and embedding are tied."""
    other = torch.randn(320, 48, generator=torch.Generator().manual_seed(2))
    own_head = own(tmp_path / "a", "hunyuan_v1_moe", ("lm_head.weight", other))
    head, embed, shared = head_and_embedding(own_head)
    assert torch.allclose(head, other)
    assert not torch.allclose(embed, other)
    assert not shared
    twice = own(tmp_path / "b", "hunyuan_v1_moe", ("lm_head.weight", embed.clone()))
    head, again, shared = head_and_embedding(twice)
    assert torch.allclose(head, embed)
    assert torch.equal(again, embed)
    assert shared, "no second copy is kept"
    only = own(tmp_path / "c", "hunyuan_v1_moe", ("lm_head.weight", other), ("model.embed_tokens.weight", None))
    head, embed, _ = head_and_embedding(only)
    assert torch.equal(embed, other)
    assert torch.allclose(head, other)
    assert not as_stored(load_spec(own_head), CheckpointReader(own_head)).tied
    assert as_stored(load_spec(only), CheckpointReader(only)).tied


@pytest.mark.parametrize("dtype", ["auto", None])
def test_the_dtype_is_the_weights_where_the_config_has_none(tmp_path: Path, dtype: str | None) -> None:
    embedding = load_file(checkpoints.shared("mixtral") / "model.safetensors")["model.embed_tokens.weight"]
    folder = own(tmp_path / "c", "mixtral", ("model.embed_tokens.weight", embedding.to(torch.float16)))
    checkpoints.edit_config(folder, ("torch_dtype",), dtype=dtype)
    spec = load_spec(folder)
    assert spec.dtype is None
    assert as_stored(spec, CheckpointReader(folder)).dtype == torch.float16


def test_a_config_of_another_shape_than_its_tensors(tmp_path: Path) -> None:
    folder = own(tmp_path / "c", "mixtral")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(UserError, match=r"no tensor model\.layers\.3\."):
        build_model(load_spec(folder), CheckpointReader(folder), torch.float32, "cpu")
