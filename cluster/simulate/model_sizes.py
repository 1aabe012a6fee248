"""Sizes of a model, by arithmetic from its config.json.

Every family that is served, and DeepSeek-V2 and V3 (MLA), which are not: their sizes are known, their layers aren't built.
"""

from pathlib import Path

from cluster.simulate.sizes import Sizes
from experts.checkpoint.folder import check_folder, read_json
from router_svc.models.config_json import Config
from router_svc.models.registry import load_spec
from router_svc.models.spec import ModelSpec, attention_parameters

_MLA = ("deepseek_v2", "deepseek_v3")


def sizes_of(spec: ModelSpec) -> Sizes:
    """Of a served model: grouped-query attention."""
    routed, width = spec.experts, spec.layers * spec.head_dim
    scores = 4 * spec.heads * width
    return Sizes(
        spec.hidden, routed.moe_layers, routed.experts, routed.top_k, routed.parameters_per_expert,
        attention_parameters(spec), 2 * spec.kv_heads * width, scores, scores,
    )  # fmt: skip


def load_sizes(folder: Path) -> Sizes:
    """Of a folder with config.json. Raises UserError on one that is neither served nor MLA."""
    check_folder(folder)
    config = Config.of(read_json(folder / "config.json"), folder)
    return _latent(config) if config.raw("model_type") in _MLA else sizes_of(load_spec(folder))


def _latent(config: Config) -> Sizes:
    """DeepSeek: the cache holds a latent and one roped key per token; decode multiplies with the latent itself, a prompt
    with the heads' own keys and values. The layer of multi-token prediction is left out."""
    hidden, layers = config.positive("hidden_size"), config.positive("num_hidden_layers")
    dense = config.integer("first_k_dense_replace", 0)
    experts, width = config.positive("num_experts"), config.positive("moe_intermediate_size")
    heads, latent = config.positive("num_attention_heads"), config.positive("kv_lora_rank")
    roped, plain = config.positive("qk_rope_head_dim"), config.positive("qk_nope_head_dim")
    value, low = config.positive("v_head_dim"), config.integer("q_lora_rank", 0)
    query = heads * (plain + roped)
    projections = (hidden + query) * low if low else hidden * query
    projections += hidden * (latent + roped) + latent * heads * (plain + value) + heads * value * hidden
    beside = experts + 3 * width * config.integer("n_shared_experts", 0)  # gate and shared experts, times hidden
    attention = 2 * config.positive("vocab_size") * hidden + layers * projections
    attention += hidden * (3 * config.positive("intermediate_size") * dense + beside * (layers - dense))
    return Sizes(
        hidden, layers - dense, experts, config.positive("num_experts_per_tok"), 3 * hidden * width, attention,
        layers * (latent + roped), 2 * layers * heads * (2 * latent + roped), 2 * layers * heads * (plain + roped + value),
    )  # fmt: skip
