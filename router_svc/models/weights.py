"""From a checkpoint to the tensors of an attention rank: names in, fused weights out. Never reads routed experts."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from experts.checkpoint.reader import CheckpointReader, Job
from router_svc.models.parts.linear import Linear
from router_svc.models.parts.mlp import SwiGLU
from router_svc.models.spec import ModelSpec, attention_bytes

Progress = Callable[[int, int], None]  # bytes done, bytes in all
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(slots=True)
class LayerWeights:
    """One decoder layer.

    qkv rows: A*D of q, then KH*D of k, then of v
    qk_norm: [A + KH, D], the norm's weight of each q and k head, of no rows where there is none
    gate: [E, H], None in a dense layer
    mlp: the shared expert of an MoE layer, or the whole MLP of a dense one
    """

    input_norm: torch.Tensor
    post_norm: torch.Tensor
    qkv: Linear
    output: Linear
    qk_norm: torch.Tensor
    gate: torch.Tensor | None
    mlp: SwiGLU | None


@dataclass(slots=True)
class ModelWeights:
    """embed: [V, H]
    head: the lm head (the embedding again when tied)
    norm: [H]
    """

    embed: torch.Tensor
    head: Linear
    norm: torch.Tensor
    layers: tuple[LayerWeights, ...]


@dataclass(slots=True)
class _Raw:
    """A layer's tensors as the checkpoint names them: (weight, bias) pairs, and what SwiGLU takes."""

    input_norm: torch.Tensor
    post_norm: torch.Tensor
    qkv: tuple[torch.Tensor, torch.Tensor | None]
    output: tuple[torch.Tensor, torch.Tensor | None]
    norms: list[torch.Tensor]
    gate: torch.Tensor | None
    mlp: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None


def as_stored(spec: ModelSpec, reader: CheckpointReader) -> ModelSpec:
    """The spec as the checkpoint has it: tied only where one of embedding and head is stored (what the file holds wins
    over what config.json says), and with the dtype of its weights where config.json has none."""
    first = HEAD if reader.has(HEAD) and not reader.has(EMBEDDING) else EMBEDDING
    dtype = spec.dtype or reader.dtype(first)
    return replace(spec, tied=spec.tied and not (reader.has(EMBEDDING) and reader.has(HEAD)), dtype=dtype)


class WeightLoader:
    """Hands out empty tensors and fills them several at once, a layer at a time. One use."""

    def __init__(self, spec: ModelSpec, reader: CheckpointReader, dtype: torch.dtype, device: str) -> None:
        self._spec, self._reader, self._dtype, self._device = as_stored(spec, reader), reader, dtype, device
        self._jobs: list[Job] = []
        self._done = 0

    def load(self, progress: Progress | None) -> ModelWeights:
        """All weights of the attention side. progress is called from several threads, one at a time.

        Raises UserError for a missing tensor or a wrong shape, named.
        """
        spec = self._spec
        embed, head, norm = self._ends()
        self._fill(progress)
        if head is not embed and torch.equal(head, embed):
            head = embed  # stored twice
        projection = Linear(head, keep=head is embed)
        del head  # packed or kept as the embedding
        return ModelWeights(embed, projection, norm, tuple(self._layer(i, progress) for i in range(spec.layers)))

    def check(self) -> None:
        """Raise UserError for what `load` would refuse; reads headers only. Without memory on device "meta"."""
        self._ends()
        for index in range(self._spec.layers):
            self._tensors(index)
        for name, dest, row in self._jobs:
            self._reader.check(name, tuple(dest.shape), row)

    def _ends(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embedding [V, H], head [V, H] (the same tensor when tied), norm [H]."""
        spec = self._spec
        first = HEAD if spec.tied and not self._reader.has(EMBEDDING) else EMBEDDING
        embed = self._take(first, spec.vocab_size, spec.hidden)
        head = embed if spec.tied else self._take(HEAD, spec.vocab_size, spec.hidden)
        return embed, head, self._take("model.norm.weight", spec.hidden)

    def _layer(self, index: int, progress: Progress | None) -> LayerWeights:
        raw = self._tensors(index)
        self._fill(progress)
        return LayerWeights(
            input_norm=raw.input_norm,
            post_norm=raw.post_norm,
            qkv=Linear(*raw.qkv),
            output=Linear(*raw.output),
            qk_norm=self._per_head(raw.norms),
            gate=raw.gate,
            mlp=SwiGLU(*raw.mlp) if raw.mlp is not None else None,
        )

    def _tensors(self, index: int) -> "_Raw":
        """A layer's tensors, to be filled."""
        spec = self._spec
        block = f"model.layers.{index}"
        rows = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, spec.kv_heads * spec.head_dim)
        names = [f"{block}.self_attn.{part}_proj" for part in "qkv"]
        qkv = self._stack([f"{name}.weight" for name in names], rows, spec.hidden)
        bias = self._stack([f"{name}.bias" for name in names], rows) if spec.qkv_bias else None
        output = self._take(f"{block}.self_attn.o_proj.weight", spec.hidden, rows[0])
        output_bias = self._take(f"{block}.self_attn.o_proj.bias", spec.hidden) if spec.output_bias else None
        moe = index in spec.experts.layers
        return _Raw(
            input_norm=self._take(f"{block}.input_layernorm.weight", spec.hidden),
            post_norm=self._take(f"{block}.post_attention_layernorm.weight", spec.hidden),
            qkv=(qkv, bias),
            output=(output, output_bias),
            norms=[self._take(name.format(layer=index), spec.head_dim) for name in spec.qk_norm_names],
            gate=self._gate(index) if moe else None,
            mlp=self._mlp(index, moe),
        )

    def _per_head(self, norms: list[torch.Tensor]) -> torch.Tensor:
        if not norms:
            return torch.empty((0, self._spec.head_dim), dtype=self._dtype, device=self._device)
        counts = torch.tensor([self._spec.heads, self._spec.kv_heads], device=self._device)
        return torch.stack(norms).repeat_interleave(counts, dim=0)

    def _gate(self, index: int) -> torch.Tensor:
        gate = self._spec.gate
        dtype = torch.float32 if gate.float32 else self._dtype
        return self._take(gate.name.format(layer=index), self._spec.experts.experts, self._spec.hidden, dtype=dtype)

    def _mlp(self, index: int, moe: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None:
        """What SwiGLU takes: the shared expert's in an MoE layer (None without one), else the dense MLP's."""
        spec, gate = self._spec, None
        prefix, width = f"model.layers.{index}.mlp", spec.dense_width
        if moe:
            if spec.shared is None:
                return None
            prefix, width = spec.shared.prefix.format(layer=index), spec.shared.width
            if spec.shared.gate:
                gate = self._take(spec.shared.gate.format(layer=index), 1, spec.hidden)
        names = [f"{prefix}.gate_proj.weight", f"{prefix}.up_proj.weight"]
        both = self._stack(names, (width, width), spec.hidden)
        return both, self._take(f"{prefix}.down_proj.weight", spec.hidden, width), gate

    def _take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        dest = torch.empty(shape, dtype=dtype or self._dtype, device=self._device)
        self._jobs.append((name, dest, None))
        return dest

    def _stack(self, names: list[str], rows: tuple[int, ...], *columns: int) -> torch.Tensor:
        dest = torch.empty((sum(rows), *columns), dtype=self._dtype, device=self._device)
        self._jobs.extend((name, part, None) for name, part in zip(names, dest.split(list(rows)), strict=True))
        return dest

    def _fill(self, progress: Progress | None) -> None:
        total = attention_bytes(self._spec, self._dtype)

        def add(nbytes: int) -> None:
            self._done += nbytes
            if progress is not None:
                progress(self._done, total)

        jobs, self._jobs = self._jobs, []
        self._reader.read_many(jobs, add)
