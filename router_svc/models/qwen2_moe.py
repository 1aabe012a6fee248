"""Qwen2-MoE: biases on q, k and v, a shared expert behind a sigmoid gate, some layers may be dense."""

from router_svc.models.config_json import Config
from router_svc.models.family import expert_names, experts_spec, sparse_layers, trunk
from router_svc.models.spec import GateSpec, ModelSpec, SharedSpec


def read(config: Config) -> ModelSpec:
    """The spec of a Qwen2-MoE config."""
    base = trunk(config, eps=1e-6, kv_heads=16)
    block = "model.layers.{layer}.mlp"
    return ModelSpec(
        **base.fields(),
        architecture="qwen2_moe",
        qkv_bias=config.flag("qkv_bias", True),
        windows=_windows(config, base.layers),
        gate=GateSpec(f"{block}.gate.weight", float32=False, renormalise=config.flag("norm_topk_prob", False)),
        experts=experts_spec(
            config,
            sparse_layers(config, base.layers),
            config.positive("moe_intermediate_size"),
            expert_names(block, "gate_proj", "up_proj", "down_proj"),
        ),
        shared=SharedSpec(
            f"{block}.shared_expert",
            config.positive("shared_expert_intermediate_size"),
            gate=f"{block}.shared_expert_gate.weight",
        ),
        dense_width=config.positive("intermediate_size"),
    )


def _windows(config: Config, layers: int) -> tuple[int | None, ...]:
    """Per layer; with use_sliding_window layer_types says which slide, else even ones below max_window_layers do."""
    if not config.flag("use_sliding_window", False):
        config.expect("layer_types", "full_attention")
        return ()
    window, limit = config.positive("sliding_window", 4096), config.integer("max_window_layers", 28)
    kinds = config.raw("layer_types")
    if kinds is None:
        return tuple(window if i % 2 == 0 and i < limit else None for i in range(layers))
    known: dict[str, int | None] = {"sliding_attention": window, "full_attention": None}
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in tuple(known) for kind in kinds):
        raise config.wrong("layer_types", kinds, f"{layers} times one of {', '.join(known)}")
    return tuple(known[kind] for kind in kinds)
