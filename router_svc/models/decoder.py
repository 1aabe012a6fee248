"""The decoder that every family shares: pre-norm blocks of attention and MoE. Its forward takes data, keeps no state.

Shape letters: T tokens of the step, H hidden, A heads, KH kv heads, D head_dim, V vocabulary.
"""

from collections.abc import Callable

import torch

from experts.checkpoint.reader import CheckpointReader
from experts.exchange.wire import Route
from router_svc.engine.batch import ForwardBatch, KVCache
from router_svc.models.parts.attention import AttentionPlan, paged_attention, plan_attention
from router_svc.models.parts.gate import softmax_top_k
from router_svc.models.parts.norm import rms_norm
from router_svc.models.parts.rope import Rope, rotate
from router_svc.models.spec import ModelSpec
from router_svc.models.weights import LayerWeights, ModelWeights, Progress, WeightLoader

# (MoE layer, x [T, H], route) -> [T, H] float32: the weighted sum of each token's routed experts.
ExpertsCall = Callable[[int, torch.Tensor, Route], torch.Tensor]


class CausalModel:
    """The attention side of a model. Thread-compatible: its weights are only read."""

    def __init__(self, spec: ModelSpec, weights: ModelWeights, dtype: torch.dtype, device: str) -> None:
        self.spec = spec
        self.dtype = dtype
        self.device = device
        self._weights = weights
        self._rope = Rope(spec.rope, device)
        self._scale = spec.head_dim**-0.5
        self._moe_index = {layer: i for i, layer in enumerate(spec.experts.layers)}

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, cache: KVCache, experts: ExpertsCall) -> torch.Tensor:
        """[n, V] float32 logits of batch.logit_rows. Writes the batch's keys and values into the cache; T >= 1."""
        weights = self._weights
        x = weights.embed[batch.ids]
        angles = self._rope.angles(batch.positions, self.dtype)
        plans = {
            window: plan_attention(batch, cache.block_size, window, self.dtype) for window in set(self.spec.windows)
        }
        for index, layer in enumerate(weights.layers):
            plan = plans[self.spec.windows[index]]
            x = x + self._attend(index, layer, x, angles, batch, cache, plan)
            x = x + self._mlp(index, layer, x, experts)
        x = rms_norm(x[batch.logit_rows], weights.norm, self.spec.norm_eps)
        return weights.head(x).float()

    def _attend(
        self,
        index: int,
        layer: LayerWeights,
        x: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        batch: ForwardBatch,
        cache: KVCache,
        plan: AttentionPlan,
    ) -> torch.Tensor:
        spec = self.spec
        x = rms_norm(x, layer.input_norm, spec.norm_eps)
        heads = layer.qkv(x).view(x.shape[0], spec.heads + 2 * spec.kv_heads, spec.head_dim)
        q, k, v = heads.split([spec.heads, spec.kv_heads, spec.kv_heads], dim=1)
        if spec.qk_norm == "before_rope":
            q, k = self._normed(layer, q, k)
        q, k = rotate(q, *angles), rotate(k, *angles)
        if spec.qk_norm == "after_rope":
            q, k = self._normed(layer, q, k)
        keys, values = cache.keys[index], cache.values[index]
        keys.index_copy_(0, batch.kv_slots, k)
        values.index_copy_(0, batch.kv_slots, v)
        mixed = paged_attention(q, keys, values, plan, self._scale)
        return layer.output(mixed.reshape(x.shape[0], -1))

    def _normed(self, layer: LayerWeights, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert layer.q_norm is not None, "a spec with qk_norm names its norms"
        assert layer.k_norm is not None, "a spec with qk_norm names its norms"
        return rms_norm(q, layer.q_norm, self.spec.norm_eps), rms_norm(k, layer.k_norm, self.spec.norm_eps)

    def _mlp(self, index: int, layer: LayerWeights, x: torch.Tensor, experts: ExpertsCall) -> torch.Tensor:
        x = rms_norm(x, layer.post_norm, self.spec.norm_eps)
        if layer.gate is None:
            assert layer.mlp is not None, f"layer {index} has neither experts nor an MLP"
            return layer.mlp(x)
        route = softmax_top_k(x, layer.gate, self.spec.experts.top_k, self.spec.gate.renormalise)
        routed = experts(self._moe_index[index], x, route).to(x.dtype)
        return routed if layer.mlp is None else routed + layer.mlp(x)


def build_model(
    spec: ModelSpec, reader: CheckpointReader, dtype: torch.dtype, device: str, progress: Progress | None = None
) -> CausalModel:
    """Load the attention side of a checkpoint: everything but the routed experts."""
    return CausalModel(spec, WeightLoader(spec, reader, dtype, device).load(progress), dtype, device)
