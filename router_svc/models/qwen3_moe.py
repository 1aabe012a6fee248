"""Qwen3-MoE: RMSNorm on q and k per head before rope, no shared expert, some layers may be dense."""

from router_svc.models.config_json import Config
from router_svc.models.family import expert_names, experts_spec, sparse_layers, trunk
from router_svc.models.spec import GateSpec, ModelSpec


def read(config: Config) -> ModelSpec:
    """The spec of a Qwen3-MoE config."""
    window = config.positive("sliding_window", 4096) if config.flag("use_sliding_window", False) else None
    base = trunk(config, eps=1e-6, kv_heads=4)
    bias = config.flag("attention_bias", False)
    attention = "model.layers.{layer}.self_attn"
    return ModelSpec(
        **base.fields(),
        architecture="qwen3_moe",
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="before_rope",
        qk_norm_names=(f"{attention}.q_norm.weight", f"{attention}.k_norm.weight"),
        windows=(window,) * base.layers,
        gate=GateSpec(
            "model.layers.{layer}.mlp.gate.weight", float32=False, renormalise=config.flag("norm_topk_prob", False)
        ),
        experts=experts_spec(
            config,
            sparse_layers(config, base.layers),
            config.positive("moe_intermediate_size"),
            expert_names("model.layers.{layer}.mlp", "gate_proj", "up_proj", "down_proj"),
        ),
        dense_width=config.positive("intermediate_size"),
    )
