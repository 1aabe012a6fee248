"""What the families share in reading a config: the fields that every one of them spells alike."""

from experts.spec import ExpertNames, ExpertsSpec
from router_svc.models.config_json import Config
from router_svc.models.rope_config import rope_spec
from router_svc.models.spec import Trunk


def trunk(config: Config, eps: float, theta: float = 10000.0, kv_heads: int | None = None) -> Trunk:
    """Read the shared fields.

    eps, theta, kv_heads: what the family's transformers class takes where the key is absent; kv heads that are null, or
        None here, are as many as heads
    """
    heads, hidden = config.positive("num_attention_heads"), config.positive("hidden_size")
    own = kv_heads if kv_heads and config.absent("num_key_value_heads") else heads
    kv_heads = config.positive("num_key_value_heads", own)
    if heads % kv_heads:
        raise config.wrong("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads = {heads}")
    head_dim = config.positive("head_dim", hidden // heads)
    if head_dim % 2:
        raise config.wrong("head_dim", head_dim, "an even number (rope turns pairs)")
    config.expect("hidden_act", "silu", "swish")  # two names of one function
    rope, max_position = rope_spec(config, head_dim, theta), config.positive("max_position_embeddings")
    base = rope.original_max_position or max_position
    stretched = int(rope.factor * base) if rope.kind in ("yarn", "linear") else 0
    return Trunk(
        vocab_size=config.positive("vocab_size"),
        hidden=hidden,
        layers=config.positive("num_hidden_layers", most=4096),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=config.number("rms_norm_eps", eps),
        rope=rope,
        max_position=max_position,
        extendable_to=stretched if stretched > max_position else None,
        tied=config.flag("tie_word_embeddings", False),
        eos_token_ids=config.integers("eos_token_id"),
        dtype=config.torch_dtype(),
    )


def expert_names(block: str, gate: str, up: str, down: str) -> ExpertNames:
    """Names of routed experts under module `block` (with {layer}) whose matrices are called gate, up and down."""
    single = block + ".experts.{expert}."
    return ExpertNames(
        gate=f"{single}{gate}.weight",
        up=f"{single}{up}.weight",
        down=f"{single}{down}.weight",
        fused_gate_up=f"{block}.experts.gate_up_proj",
        fused_down=f"{block}.experts.down_proj",
    )


def experts_spec(config: Config, layers: tuple[int, ...], width: int, names: ExpertNames) -> ExpertsSpec:
    """The routed experts. Raises UserError when top-k exceeds the number of experts or no layer is an MoE layer."""
    experts = config.positive("num_experts", most=32767)
    if not layers:
        raise config.wrong("num_hidden_layers", config.raw("num_hidden_layers"), "at least one MoE layer")
    every = config.by_layer("num_experts_per_tok", config.positive("num_hidden_layers"))
    chosen = tuple(every[layer] for layer in layers)
    if max(chosen) > experts:
        raise config.wrong("num_experts_per_tok", max(chosen), f"at most num_experts = {experts}")
    return ExpertsSpec(layers, experts, chosen, config.positive("hidden_size"), width, "silu", names)


def sparse_layers(config: Config, layers: int) -> tuple[int, ...]:
    """MoE layers of the Qwen families: every decoder_sparse_step-th that mlp_only_layers does not name."""
    dense = set(config.integers("mlp_only_layers"))
    step = config.positive("decoder_sparse_step", 1)
    return tuple(i for i in range(layers) if i not in dense and (i + 1) % step == 0)
