"""Mixtral: plain attention, router logits in the model's dtype, always renormalised, no shared expert."""

from router_svc.models.config_json import Config
from router_svc.models.family import expert_names, experts_spec, trunk
from router_svc.models.spec import GateSpec, ModelSpec


def read(config: Config) -> ModelSpec:
    """The spec of a Mixtral config."""
    base = trunk(config, eps=1e-5, theta=1e6, kv_heads=8)
    window = config.positive("sliding_window") if config.raw("sliding_window") is not None else None
    return ModelSpec(
        **base.fields(),
        architecture="mixtral",
        windows=(window,) * base.layers,
        gate=GateSpec("model.layers.{layer}.block_sparse_moe.gate.weight", float32=False, renormalise=True),
        experts=experts_spec(
            config,
            tuple(range(base.layers)),
            config.positive("intermediate_size"),
            expert_names("model.layers.{layer}.block_sparse_moe", "w1", "w3", "w2"),
        ),
    )
