"""Hunyuan-A13B (model_type hunyuan_v1_moe; "hunyuan" in Tencent's own configs).

Rope first, then RMSNorm on q and k; a float32 router named gate.wg; one shared expert of weight 1; dropless.
"""

from dataclasses import replace

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
    base = trunk(config, eps=1e-5)
    if base.rope.kind == "default" and base.rope.alpha > 1:
        base = replace(base, extendable_to=max(_TRAINED_POSITIONS, base.max_position))
    width = config.positive("moe_intermediate_size", config.positive("intermediate_size"))
    shared = max(config.integer("num_shared_expert", 1), 0)
    bias = config.flag("attention_bias", False)
    norm = config.flag("use_qk_norm", True)
    block = "model.layers.{layer}"
    norms = (f"{block}.self_attn.query_layernorm.weight", f"{block}.self_attn.key_layernorm.weight")
    return ModelSpec(
        **base.fields(),
        architecture="hunyuan_v1_moe",
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="after_rope" if norm else "none",
        qk_norm_names=norms if norm else (),
        gate=GateSpec(f"{block}.mlp.gate.wg.weight", float32=True, renormalise=True),
        experts=experts_spec(
            config, tuple(range(base.layers)), width, expert_names(f"{block}.mlp", "gate_proj", "up_proj", "down_proj")
        ),
        shared=SharedSpec(f"{block}.mlp.shared_mlp", shared * config.positive("intermediate_size")) if shared else None,
    )
