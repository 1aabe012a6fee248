"""Mixtral: plain attention, router logits in the model's dtype, always renormalised, no shared expert."""

from router_svc.models.config_json import Config
from router_svc.models.family import expert_names, experts_spec, trunk
from router_svc.models.spec import GateSpec, ModelSpec


def read(config: Config) -> ModelSpec:
    """The spec of a Mixtral config."""
    base = trunk(config, eps=1e-5, tied=False)
    window = config.integer("sliding_window", 0) or None
    return ModelSpec(
        architecture="mixtral",
        vocab_size=base.vocab_size,
        hidden=base.hidden,
        layers=base.layers,
        heads=base.heads,
        kv_heads=base.kv_heads,
        head_dim=base.head_dim,
        norm_eps=base.norm_eps,
        rope=base.rope,
        max_position=base.max_position,
        extendable_to=base.extendable_to,
        tied=base.tied,
        qkv_bias=False,
        output_bias=False,
        qk_norm="none",
        qk_norm_names=(),
        windows=(window,) * base.layers,
        gate=GateSpec("model.layers.{layer}.block_sparse_moe.gate.weight", float32=False, renormalise=True),
        experts=experts_spec(
            config,
            tuple(range(base.layers)),
            config.positive("intermediate_size"),
            expert_names("model.layers.{layer}.block_sparse_moe", "w1", "w3", "w2"),
        ),
        shared=None,
        dense_width=0,
        bos_token_id=config.integer("bos_token_id", 1),
        eos_token_ids=config.integers("eos_token_id"),
        dtype=config.torch_dtype(),
    )
