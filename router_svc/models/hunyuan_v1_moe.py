"""Hunyuan-A13B (model_type hunyuan_v1_moe; "hunyuan" in Tencent's own configs).

Rope first, then RMSNorm on q and k; a float32 router named gate.wg; one shared expert of weight 1; dropless.
"""

from router_svc.models.config_json import Config
from router_svc.models.family import expert_names, experts_spec, trunk
from router_svc.models.spec import GateSpec, ModelSpec, SharedSpec

# Trained to 256 K positions; its rope (static alpha) does not depend on the length.
_TRAINED_POSITIONS = 262144


def read(config: Config) -> ModelSpec:
    """The spec of a Hunyuan config. Raises UserError for CLA, MLA and other variants that are not built."""
    for key in ("use_cla", "use_mla", "group_limited_greedy", "mlp_bias"):
        config.expect(key, False)
    config.expect("routed_scaling_factor", 1.0, 1)
    config.expect("norm_topk_prob", True)
    config.expect("moe_layer_num_skipped", 0)
    config.expect("use_mixed_mlp_moe", True)
    base = trunk(config, eps=1e-5, tied=False)
    width = config.positive("moe_intermediate_size", config.positive("intermediate_size"))
    shared = config.integer("num_shared_expert", 1)
    layers = tuple(range(base.layers))
    static = base.rope.kind == "default" and base.rope.alpha > 1
    bias = config.flag("attention_bias", False)
    norm = config.flag("use_qk_norm", True)
    attention = "model.layers.{layer}.self_attn"
    return ModelSpec(
        architecture="hunyuan_v1_moe",
        vocab_size=base.vocab_size,
        hidden=base.hidden,
        layers=base.layers,
        heads=base.heads,
        kv_heads=base.kv_heads,
        head_dim=base.head_dim,
        norm_eps=base.norm_eps,
        rope=base.rope,
        max_position=base.max_position,
        extendable_to=max(_TRAINED_POSITIONS, base.max_position) if static else base.extendable_to,
        tied=base.tied,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="after_rope" if norm else "none",
        qk_norm_names=(f"{attention}.query_layernorm.weight", f"{attention}.key_layernorm.weight") if norm else (),
        windows=(None,) * base.layers,
        gate=GateSpec("model.layers.{layer}.mlp.gate.wg.weight", float32=True, renormalise=True),
        experts=experts_spec(
            config, layers, width, expert_names("model.layers.{layer}.mlp", "gate_proj", "up_proj", "down_proj")
        ),
        shared=SharedSpec("model.layers.{layer}.mlp.shared_mlp", config.positive("intermediate_size") * shared)
        if shared
        else None,
        dense_width=0,
        bos_token_id=None,  # A13B's file names an id that its tokenizer never uses
        eos_token_ids=config.integers("eos_token_id"),
        dtype=config.torch_dtype(),
    )
