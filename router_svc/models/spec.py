"""ModelSpec: everything the shared decoder must know of a checkpoint, as frozen data. Knows no tensor values."""

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

from experts.spec import ExpertsSpec

QkNorm = Literal["none", "before_rope", "after_rope"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding (rotate-half), as config.json states it; `parts.rope` computes the frequencies.

    alpha: Hunyuan's static stretch of the base, 1 = none
    factor: of linear and yarn
    """

    kind: Literal["default", "linear", "yarn"]
    dim: int
    theta: float
    alpha: float = 1.0
    factor: float = 1.0
    original_max_position: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0  # multiplies cos and sin


@dataclass(frozen=True, slots=True)
class GateSpec:
    """The router: softmax over all experts, then the k likeliest.

    name: tensor name with {layer}
    float32: logits computed in float32 whatever the model's dtype
    renormalise: the k weights are divided by their sum
    """

    name: str
    float32: bool
    renormalise: bool


@dataclass(frozen=True, slots=True)
class SharedSpec:
    """A shared expert beside the routed ones.

    prefix: module name with {layer}
    width: in columns
    gate: name with {layer} of a [1, H] sigmoid gate on its output, or None for weight 1
    """

    prefix: str
    width: int
    gate: str | None = None


@dataclass(frozen=True, slots=True)
class Trunk:
    """What every family's config.json spells alike. A heads, KH kv heads and D head_dim need not make up H hidden."""

    vocab_size: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeSpec
    max_position: int
    extendable_to: int | None  # --max-model-len may go up to here; None = not beyond max_position
    tied: bool  # one matrix is embedding and head
    eos_token_ids: tuple[int, ...]
    dtype: torch.dtype | None  # the checkpoint's; None = as its weights are stored

    def fields(self) -> dict[str, Any]:
        """Field by field, to build a ModelSpec from."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec(Trunk):
    """A decoder-only MoE model: the trunk, and what its family adds. Names hold {layer}."""

    architecture: str  # the family's model_type
    gate: GateSpec
    experts: ExpertsSpec
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: QkNorm = "none"
    qk_norm_names: tuple[str, ...] = ()  # of q and of k
    windows: tuple[int | None, ...] = ()  # per layer, see `window`; empty = full attention everywhere
    shared: SharedSpec | None = None
    dense_width: int = 0  # of layers that are no MoE layers

    @property
    def shared_width(self) -> int:
        """Columns of the shared expert, 0 without one."""
        return self.shared.width if self.shared is not None else 0

    def window(self, layer: int) -> int | None:
        """Sliding window of a layer in tokens (it counts the token itself), None = full attention."""
        return self.windows[layer] if self.windows else None

    @property
    def longest(self) -> int:
        """Most positions the model can be asked for."""
        return self.extendable_to or self.max_position


def attention_parameters(spec: ModelSpec) -> int:
    """Weights an attention rank holds: all but the routed experts."""
    heads = (spec.heads + 2 * spec.kv_heads) * spec.head_dim
    per_layer = spec.hidden * heads + spec.heads * spec.head_dim * spec.hidden + 2 * spec.hidden
    per_layer += heads * spec.qkv_bias + spec.hidden * spec.output_bias + 2 * spec.head_dim * (spec.qk_norm != "none")
    moe = spec.experts.experts * spec.hidden
    if spec.shared is not None:
        moe += 3 * spec.hidden * spec.shared.width + spec.hidden * (spec.shared.gate is not None)
    dense = 3 * spec.hidden * spec.dense_width
    moe_layers = spec.experts.moe_layers
    ends = spec.vocab_size * spec.hidden * (1 if spec.tied else 2) + spec.hidden
    return ends + per_layer * spec.layers + moe * moe_layers + dense * (spec.layers - moe_layers)


def attention_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
    """Bytes of an attention rank's weights."""
    return attention_parameters(spec) * dtype.itemsize


def expert_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
    """Bytes of one logical expert of one layer."""
    return spec.experts.parameters_per_expert * dtype.itemsize


def kv_bytes_per_token(spec: ModelSpec, dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values over all layers."""
    return 2 * spec.layers * spec.kv_heads * spec.head_dim * dtype.itemsize
