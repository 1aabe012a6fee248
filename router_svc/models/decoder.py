"""The decoder that every family shares: pre-norm blocks of attention and MoE. Its forward takes data, keeps no state.

Shape letters: T tokens of the step, H hidden, A heads, KH kv heads, D head_dim, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from experts.checkpoint.reader import CheckpointReader
from experts.exchange.wire import Route
from router_svc.models.batch import ForwardBatch, KVCache
from router_svc.models.parts.attention import AttentionPlan, paged_attention, plan_attention
from router_svc.models.parts.gate import padded, softmax_top_k
from router_svc.models.parts.norm import rms_norm
from router_svc.models.parts.rope import Rope, rotate
from router_svc.models.spec import ModelSpec
from router_svc.models.weights import LayerWeights, ModelWeights, Progress, WeightLoader

# (MoE layer, x [T, H], route) -> [T, H] float32: the weighted sum of each token's routed experts.
ExpertsCall = Callable[[int, torch.Tensor, Route], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Step:
    """What all layers of one forward share.

    angles: cos and sin
    plans: per sliding window
    """

    batch: ForwardBatch
    cache: KVCache
    angles: tuple[torch.Tensor, torch.Tensor]
    plans: dict[int | None, AttentionPlan]


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
        """[n, V] float32 logits of batch.logit_rows. Writes the batch's keys and values into the cache; T >= 1.

        experts is called once for every MoE layer, in order.
        """
        weights = self._weights
        x = weights.embed.index_select(0, batch.ids)
        windows = {self.spec.window(layer) for layer in range(self.spec.layers)}
        plans = {window: plan_attention(batch, cache.block_size, window, self.dtype) for window in windows}
        step = Step(batch, cache, self._rope.angles(batch.positions, self.dtype), plans)
        for index, layer in enumerate(weights.layers):
            x = x.add_(self._attend(index, layer, x, step))
            x = x.add_(self._mlp(index, layer, x, experts))
        x = rms_norm(x.index_select(0, batch.logit_rows), weights.norm, self.spec.norm_eps)
        return weights.head(x).float()

    def largest_product(self, batch: ForwardBatch) -> int:
        """Multiply-adds of the largest product that `forward` makes of this batch: weights, or attention itself."""
        spec, rows = self.spec, batch.ids.shape[0]
        widths = (spec.heads + 2 * spec.kv_heads) * spec.head_dim, 2 * spec.dense_width, 2 * spec.shared_width
        seen = sum(own * all_ for own, all_ in zip(batch.query_lens, batch.context_lens, strict=True))
        head = batch.logit_rows.shape[0] * spec.vocab_size
        return max(spec.hidden * max(rows * max(widths), head), 2 * seen * spec.heads * spec.head_dim)

    def _attend(self, index: int, layer: LayerWeights, x: torch.Tensor, step: Step) -> torch.Tensor:
        spec = self.spec
        x = rms_norm(x, layer.input_norm, spec.norm_eps)
        heads = layer.qkv(x).view(x.shape[0], -1, spec.head_dim)
        qk, v = heads.split([spec.heads + spec.kv_heads, spec.kv_heads], dim=1)
        if spec.qk_norm == "before_rope":
            qk = rms_norm(qk, layer.qk_norm, spec.norm_eps)
        qk = rotate(qk, *step.angles)
        if spec.qk_norm == "after_rope":
            qk = rms_norm(qk, layer.qk_norm, spec.norm_eps)
        q, k = qk.split([spec.heads, spec.kv_heads], dim=1)
        cache = step.cache.keys[index], step.cache.values[index]
        cache[0].index_copy_(0, step.batch.kv_slots, k)
        cache[1].index_copy_(0, step.batch.kv_slots, v)
        mixed = paged_attention(q, k, v, cache, step.plans[spec.window(index)], self._scale)
        return layer.output(mixed.flatten(1))

    def _mlp(self, index: int, layer: LayerWeights, x: torch.Tensor, experts: ExpertsCall) -> torch.Tensor:
        x = rms_norm(x, layer.post_norm, self.spec.norm_eps)
        if layer.gate is None:
            assert layer.mlp is not None, f"layer {index} has neither experts nor an MLP"
            return layer.mlp(x)
        own, spec = self._moe_index[index], self.spec
        route = softmax_top_k(x, layer.gate, spec.experts.chosen[own], spec.gate.renormalise)
        routed = experts(own, x, padded(route, spec.experts.top_k)).to(x.dtype)
        return routed if layer.mlp is None else routed + layer.mlp(x)


def build_model(
    spec: ModelSpec, reader: CheckpointReader, dtype: torch.dtype, device: str, progress: Progress | None = None
) -> CausalModel:
    """Load the attention side of a checkpoint: everything but the routed experts.

    Raises UserError for a tensor that is missing or has another shape than config.json says, named.
    """
    return CausalModel(spec, WeightLoader(spec, reader, dtype, device).load(progress), dtype, device)
