"""From a checkpoint to the tensors of an attention rank: names in, fused weights out. Never reads routed experts."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch

from experts.checkpoint.reader import CheckpointReader, Job
from router_svc.models.parts.linear import Linear
from router_svc.models.parts.mlp import SwiGLU
from router_svc.models.spec import ModelSpec

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(slots=True)
class LayerWeights:
    """One decoder layer. qkv rows: A*D of q, then KH*D of k, then of v; gate: [E, H] or None in a dense layer."""

    input_norm: torch.Tensor
    post_norm: torch.Tensor
    qkv: Linear
    output: Linear
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    gate: torch.Tensor | None
    mlp: SwiGLU | None  # the shared expert of an MoE layer, or the whole MLP of a dense one


@dataclass(slots=True)
class ModelWeights:
    """embed: [V, H]; head: the lm head (the embedding again when tied); norm: [H]."""

    embed: torch.Tensor
    head: Linear
    norm: torch.Tensor
    layers: tuple[LayerWeights, ...]


class WeightLoader:
    """Collects reads as it hands out empty tensors, so that they run several at once. One use."""

    def __init__(self, spec: ModelSpec, reader: CheckpointReader, dtype: torch.dtype, device: str) -> None:
        self._spec, self._reader, self._dtype, self._device = spec, reader, dtype, device
        self._jobs: list[Job] = []

    def load(self, progress: Progress | None) -> ModelWeights:
        """All weights of the attention side. Raises UserError for a missing tensor or a wrong shape, named."""
        spec = self._spec
        embed = self._take("model.embed_tokens.weight", spec.vocab_size, spec.hidden)
        head = embed if spec.tied else self._take("lm_head.weight", spec.vocab_size, spec.hidden)
        norm = self._take("model.norm.weight", spec.hidden)
        layers = tuple(self._layer(index) for index in range(spec.layers))
        self._read(progress)
        return ModelWeights(embed, Linear(head), norm, layers)

    def _layer(self, index: int) -> LayerWeights:
        spec = self._spec
        block = f"model.layers.{index}"
        rows = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, spec.kv_heads * spec.head_dim)
        names = [f"{block}.self_attn.{part}_proj" for part in "qkv"]
        qkv = self._stack([f"{name}.weight" for name in names], rows, spec.hidden)
        bias = self._stack([f"{name}.bias" for name in names], rows) if spec.qkv_bias else None
        output = self._take(f"{block}.self_attn.o_proj.weight", spec.hidden, rows[0])
        output_bias = self._take(f"{block}.self_attn.o_proj.bias", spec.hidden) if spec.output_bias else None
        q_norm = k_norm = None
        if spec.qk_norm_names is not None:
            q_norm, k_norm = (self._take(name.format(layer=index), spec.head_dim) for name in spec.qk_norm_names)
        moe = index in spec.experts.layers
        return LayerWeights(
            input_norm=self._take(f"{block}.input_layernorm.weight", spec.hidden),
            post_norm=self._take(f"{block}.post_attention_layernorm.weight", spec.hidden),
            qkv=Linear(qkv, bias),
            output=Linear(output, output_bias),
            q_norm=q_norm,
            k_norm=k_norm,
            gate=self._gate(index) if moe else None,
            mlp=self._shared(index) if moe else self._swiglu(f"{block}.mlp", spec.dense_width, None),
        )

    def _gate(self, index: int) -> torch.Tensor:
        gate = self._spec.gate
        dtype = torch.float32 if gate.float32 else self._dtype
        return self._take(gate.name.format(layer=index), self._spec.experts.experts, self._spec.hidden, dtype=dtype)

    def _shared(self, index: int) -> SwiGLU | None:
        shared = self._spec.shared
        if shared is None:
            return None
        gate = self._take(shared.gate.format(layer=index), 1, self._spec.hidden) if shared.gate else None
        return self._swiglu(shared.prefix.format(layer=index), shared.width, gate)

    def _swiglu(self, prefix: str, width: int, gate: torch.Tensor | None) -> SwiGLU:
        hidden = self._spec.hidden
        both = self._stack([f"{prefix}.gate_proj.weight", f"{prefix}.up_proj.weight"], (width, width), hidden)
        return SwiGLU(both, self._take(f"{prefix}.down_proj.weight", hidden, width), gate)

    def _take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        dest = torch.empty(shape, dtype=dtype or self._dtype, device=self._device)
        self._jobs.append((name, dest, None))
        return dest

    def _stack(self, names: list[str], rows: tuple[int, ...], *columns: int) -> torch.Tensor:
        dest = torch.empty((sum(rows), *columns), dtype=self._dtype, device=self._device)
        self._jobs.extend((name, part, None) for name, part in zip(names, dest.split(list(rows)), strict=True))
        return dest

    def _read(self, progress: Progress | None) -> None:
        total = sum(dest.nbytes for _, dest, _ in self._jobs)
        done, lock = 0, threading.Lock()

        def add(nbytes: int) -> None:
            nonlocal done
            with lock:
                done += nbytes
                if progress is not None:
                    progress(done, total)

        self._reader.read_many(self._jobs, add)
