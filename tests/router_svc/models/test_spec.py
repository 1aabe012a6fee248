"""config.json to ModelSpec: A13B's published figures, both dialects' aliases, and everything that is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from experts.errors import UserError
from router_svc.models.registry import FAMILIES, ignored_keys, load_spec
from router_svc.models.spec import attention_bytes, attention_parameters, expert_bytes, kv_bytes_per_token

A13B: dict[str, Any] = {
    "architectures": ["HunYuanMoEV1ForCausalLM"], "model_type": "hunyuan_v1_moe", "hidden_size": 4096,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "attention_head_dim": 128,
    "intermediate_size": 3072, "moe_intermediate_size": [3072] * 32, "num_experts": 64, "moe_topk": [8] * 32,
    "num_shared_expert": [1] * 32, "use_mixed_mlp_moe": True, "moe_layer_num_skipped": 0, "vocab_size": 128167,
    "org_vocab_size": 128167, "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "attention_bias": False, "mlp_bias": False, "use_qk_norm": True, "use_cla": False, "cla_share_factor": 2,
    "use_mla": False, "norm_topk_prob": True, "routed_scaling_factor": 1.0, "group_limited_greedy": False,
    "rope_theta": 10000.0, "max_position_embeddings": 32768, "torch_dtype": "bfloat16", "bos_token_id": 1,
    "eos_token_id": 127960, "eod_token_id": 127967, "pad_token_id": 127961, "n_group": None, "q_lora_rank": None,
    "rope_scaling": {
        "type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}  # fmt: skip
MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "num_local_experts": 8, "num_experts_per_tok": 2,
    "vocab_size": 32000, "rope_theta": 1e6, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
    "sliding_window": None, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN3: dict[str, Any] = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "moe_intermediate_size": 768, "intermediate_size": 6144,
    "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "vocab_size": 151936, "rope_theta": 1e6,
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "use_sliding_window": False, "sliding_window": None,
    "mlp_only_layers": [], "decoder_sparse_step": 1, "torch_dtype": "bfloat16", "eos_token_id": [151645, 151643],
}  # fmt: skip
QWEN2: dict[str, Any] = {
    "model_type": "qwen2_moe", "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16,
    "num_key_value_heads": 16, "intermediate_size": 5632, "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632, "num_experts": 60, "num_experts_per_tok": 4, "norm_topk_prob": False,
    "vocab_size": 151936, "rope_theta": 1e6, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
    "use_sliding_window": False, "decoder_sparse_step": 1, "torch_dtype": "bfloat16", "eos_token_id": 151643,
}  # fmt: skip


def write(folder: Path, config: Any, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, **changes} if isinstance(config, dict) else config))
    return folder


def parameters(folder: Path) -> tuple[float, float]:
    """(all, active per token), in units of 1e9."""
    spec = load_spec(folder)
    expert, own = spec.experts.parameters_per_expert, attention_parameters(spec)
    routed = spec.experts.moe_layers * expert
    return (own + routed * spec.experts.experts) / 1e9, (own + routed * spec.experts.top_k) / 1e9


def test_hunyuan_a13b_is_as_large_as_published(tmp_path: Path) -> None:
    folder = write(tmp_path, A13B)
    spec = load_spec(folder)
    total, active = parameters(folder)
    assert round(total, 3) == 80.393
    assert 12.74 <= active < 12.75
    assert kv_bytes_per_token(spec, torch.bfloat16) == 131_072
    assert expert_bytes(spec, torch.bfloat16) == 75_497_472
    assert round(attention_bytes(spec, torch.bfloat16) / 1e9, 1) == 6.2
    assert (spec.max_position, spec.extendable_to, spec.longest) == (32768, 262144, 262144)
    assert spec.experts.layers == tuple(range(32))
    assert spec.eos_token_ids == (127960,)
    assert spec.dtype == torch.bfloat16
    assert spec.gate.float32


@pytest.mark.parametrize(
    ("config", "total", "active"), [(MIXTRAL, 46.703, 12.88), (QWEN3, 30.532, 3.35), (QWEN2, 14.316, 2.69)]
)
def test_other_published_sizes(tmp_path: Path, config: dict[str, Any], total: float, active: float) -> None:
    found = parameters(write(tmp_path, config))
    assert (round(found[0], 3), round(found[1], 2)) == (total, active)


def test_longer_contexts_only_where_rope_allows(tmp_path: Path) -> None:
    assert load_spec(write(tmp_path, MIXTRAL)).extendable_to is None
    assert load_spec(write(tmp_path, A13B, rope_scaling=None)).extendable_to is None
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert load_spec(write(tmp_path, QWEN3, rope_scaling=yarn)).extendable_to == 131072


def test_aliases_and_nulls(tmp_path: Path) -> None:
    first = load_spec(write(tmp_path, QWEN3))
    renamed = {k: v for k, v in QWEN3.items() if k not in ("num_experts", "torch_dtype", "rope_theta")}
    renamed |= {
        "num_local_experts": 128, "num_experts": None, "dtype": "bfloat16",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "quantization_config": None,
    }  # fmt: skip
    assert load_spec(write(tmp_path, renamed)) == first
    assert load_spec(write(tmp_path, {k: v for k, v in A13B.items() if k != "eos_token_id"})).eos_token_ids == ()


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (A13B, {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]},
         ("'deepseek_v3'", "DeepseekV3ForCausalLM", *FAMILIES)),
        (A13B, {"model_type": None}, ("model_type missing",)),
        (A13B, {"model_type": ["hunyuan"]}, ("['hunyuan']",)),
        (A13B, {"use_cla": True}, ("use_cla = True", "False")),
        (A13B, {"use_mla": True}, ("use_mla",)),
        (A13B, {"group_limited_greedy": True}, ("group_limited_greedy",)),
        (A13B, {"routed_scaling_factor": 2.5}, ("routed_scaling_factor = 2.5",)),
        (A13B, {"use_mixed_mlp_moe": False}, ("use_mixed_mlp_moe",)),
        (A13B, {"moe_topk": [8] * 30 + [4]}, ("moe_topk", "for all 32 layers")),
        (A13B, {"moe_topk": [8] * 31 + [0]}, ("moe_topk", "above 0")),
        (A13B, {"num_experts": [64] * 31 + [32]}, ("num_experts", "the same for all layers")),
        (A13B, {"moe_intermediate_size": [3072] * 31 + [2048]}, ("moe_intermediate_size", "the same for all layers")),
        (A13B, {"num_shared_expert": [1] * 31 + [2]}, ("num_shared_expert", "the same for all layers")),
        (A13B, {"moe_topk": [65] * 32}, ("= 65", "at most num_experts = 64")),
        (A13B, {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, ("rope_type", "dynamic with alpha")),
        (A13B, {"rope_scaling": {"factor": 4.0}}, ("rope_type missing",)),
        (A13B, {"rope_scaling": "yarn"}, ("rope_scaling = 'yarn'", "an object")),
        (A13B, {"quantization_config": {"quant_method": "gptq"}}, ("gptq", "not supported yet")),
        (QWEN3, {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, ("rope_type missing", "all layers")),
        (QWEN3, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ("'llama3'",)),
        (QWEN3, {"rope_scaling": {"rope_type": "yarn", "factor": 0.0}}, ("factor = 0.0",)),
        (QWEN3, {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
                 "rope_scaling": {"type": "yarn", "factor": 4.0}},
         ("rope_scaling without a rope_theta beside rope_parameters",
          '"rope_parameters": {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0} alone')),
        (QWEN3, {"partial_rotary_factor": 0.5}, ("partial_rotary_factor = 0.5",)),
        (QWEN3, {"hidden_size": None}, ("hidden_size missing", "config.json")),
        (QWEN3, {"hidden_size": "2048"}, ("hidden_size = '2048'", "whole number")),
        (QWEN3, {"hidden_size": 2048.5}, ("hidden_size = 2048.5",)),
        (QWEN2, {"layer_types": ["full_attention"] * 23 + ["sliding_attention"]}, ("layer_types", "'full_attention'")),
        (QWEN3, {"hidden_size": True}, ("hidden_size = True",)),
        (QWEN3, {"hidden_size": 0}, ("hidden_size = 0",)),
        (QWEN3, {"num_hidden_layers": 10**12}, ("num_hidden_layers",)),
        (QWEN3, {"num_hidden_layers": 10**12}, ("4096",)),
        (QWEN3, {"head_dim": 127}, ("head_dim = 127", "even")),
        (QWEN3, {"num_key_value_heads": 5}, ("num_key_value_heads = 5", "divisor")),
        (QWEN3, {"rms_norm_eps": float("nan")}, ("rms_norm_eps = nan",)),
        (QWEN3, {"rope_theta": -1}, ("rope_theta = -1",)),
        (QWEN3, {"norm_topk_prob": 1}, ("norm_topk_prob = 1", "true or false")),
        (QWEN3, {"hidden_act": "gelu"}, ("hidden_act = 'gelu'",)),
        (QWEN3, {"eos_token_id": ["2"]}, ("eos_token_id",)),
        (QWEN3, {"torch_dtype": "int8"}, ("torch_dtype", "bfloat16")),
        (QWEN3, {"mlp_only_layers": list(range(48))}, ("at least one MoE layer",)),
        (QWEN2, {"use_sliding_window": True, "layer_types": [["x"]] * 24}, ("layer_types",)),
    ],
)  # fmt: skip
def test_refusals_name_key_value_and_file(
    tmp_path: Path, config: dict[str, Any], changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as caught:
        load_spec(write(tmp_path, config, **changes))
    message = str(caught.value)
    assert "\n" not in message
    for word in (*words, str(tmp_path / "config.json")):
        assert word in message, message


def test_values_as_people_write_them(tmp_path: Path) -> None:
    plain = load_spec(write(tmp_path, QWEN3))
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "vocab_size"):
        assert load_spec(write(tmp_path, QWEN3, **{key: float(QWEN3[key])})) == plain
    assert load_spec(write(tmp_path, QWEN3, hidden_act="swish")) == plain
    assert load_spec(write(tmp_path, QWEN3, eos_token_id=[151645.0, 151643])) == plain
    for words, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32), ("auto", None)):
        assert load_spec(write(tmp_path, QWEN3, torch_dtype=words)).dtype == dtype
    lists = {"norm_topk_prob": [True] * 48, "rms_norm_eps": [1e-6] * 48, "moe_intermediate_size": [768] * 48}
    assert load_spec(write(tmp_path, QWEN3, **lists)) == plain
    a13b = load_spec(write(tmp_path, A13B))
    assert load_spec(write(tmp_path, A13B, use_cla=[False] * 32, routed_scaling_factor=[1.0] * 32)) == a13b


def test_top_k_by_layer(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, A13B, moe_topk=[8] * 30 + [4, 2])).experts
    assert spec.chosen == (8,) * 30 + (4, 2)
    assert spec.top_k == 8


def test_linear_rope_reaches_as_far_as_yarn(tmp_path: Path) -> None:
    assert load_spec(write(tmp_path, QWEN2, rope_scaling={"type": "linear", "factor": 4.0})).longest == 4 * 8192


def test_of_two_rope_objects_the_one_with_a_base_counts_as_in_transformers(tmp_path: Path) -> None:
    new, old = {"rope_type": "default", "rope_theta": 5e5}, {"type": "linear", "factor": 2.0}
    for changes in (
        {"rope_parameters": new, "rope_scaling": {**old, "rope_theta": 1e6}, "rope_theta": None},
        {"rope_parameters": new, "rope_scaling": old},  # beside rope_theta at the top
    ):
        rope = load_spec(write(tmp_path, QWEN3, **changes)).rope
        theirs = transformers.Qwen3MoeConfig.from_pretrained(tmp_path).rope_parameters
        assert (rope.kind, rope.theta, rope.factor) == ("linear", 1e6, 2.0)
        assert (theirs["rope_type"], theirs["rope_theta"], theirs["factor"]) == ("linear", 1e6, 2.0)
    assert load_spec(write(tmp_path, QWEN3, rope_parameters=new, rope_scaling={}, rope_theta=None)).rope.theta == 5e5


CLASSES = {
    "mixtral": transformers.MixtralConfig,
    "qwen2_moe": transformers.Qwen2MoeConfig,
    "qwen3_moe": transformers.Qwen3MoeConfig,
    "hunyuan_v1_moe": transformers.HunYuanMoEV1Config,
}
# What no checkpoint leaves to a default, and whose default would be that of another model.
REQUIRED = {
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings",
    "intermediate_size", "moe_intermediate_size", "num_experts", "num_local_experts", "num_experts_per_tok", "moe_topk",
    "shared_expert_intermediate_size",
}  # fmt: skip


def agree(folder: Path, theirs: Any) -> None:
    """Every field of the spec is what the family's class in transformers has."""
    spec = load_spec(folder)
    heads, layers = theirs.num_attention_heads, theirs.num_hidden_layers
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // heads
    eos = theirs.eos_token_id
    rope = theirs.rope_parameters
    assert (spec.vocab_size, spec.hidden, spec.layers) == (theirs.vocab_size, theirs.hidden_size, layers)
    assert (spec.heads, spec.kv_heads, spec.head_dim) == (heads, theirs.num_key_value_heads or heads, head_dim)
    assert (spec.norm_eps, spec.max_position) == (theirs.rms_norm_eps, theirs.max_position_embeddings)
    assert spec.tied == theirs.tie_word_embeddings
    assert spec.dtype == theirs.dtype
    assert spec.eos_token_ids == (() if eos is None else (eos,) if isinstance(eos, int) else tuple(eos))
    assert spec.rope.theta == rope["rope_theta"]
    assert spec.rope.alpha == rope.get("alpha", 1.0)
    assert spec.rope.factor == (rope["factor"] if spec.rope.kind != "default" else 1.0)
    assert spec.rope.kind == ("default" if rope["rope_type"] == "dynamic" else rope["rope_type"])
    if spec.rope.kind != "default":
        assert spec.rope.attention_factor == pytest.approx(ROPE_INIT_FUNCTIONS[spec.rope.kind](theirs, "cpu")[1])
    if spec.rope.kind == "yarn":
        assert spec.rope.original_max_position == rope.get("original_max_position_embeddings", spec.max_position)
        assert (spec.rope.beta_fast, spec.rope.beta_slow) == (rope.get("beta_fast", 32), rope.get("beta_slow", 1))
        assert spec.rope.truncate == rope.get("truncate", True)
    assert spec.gate.renormalise == getattr(theirs, "norm_topk_prob", True)
    routed, chosen = spec.experts, getattr(theirs, "moe_topk", None) or theirs.num_experts_per_tok
    assert routed.experts == theirs.num_experts
    assert routed.chosen == (tuple(chosen) if isinstance(chosen, list) else (chosen,) * len(routed.layers))
    width = getattr(theirs, "moe_intermediate_size", None) or theirs.intermediate_size
    assert routed.width == (width[0] if isinstance(width, list) else width)
    assert theirs.hidden_act in ("silu", "swish")
    bias = bool(getattr(theirs, "qkv_bias", False) or getattr(theirs, "attention_bias", False))
    assert (spec.qkv_bias, spec.output_bias) == (bias, bool(getattr(theirs, "attention_bias", False)))
    if spec.architecture in ("qwen2_moe", "qwen3_moe"):
        assert spec.dense_width == theirs.intermediate_size
        sparse = [i for i in range(layers) if (i + 1) % theirs.decoder_sparse_step == 0]
        assert list(routed.layers) == [i for i in sparse if i not in theirs.mlp_only_layers]
    if spec.architecture == "qwen2_moe":
        slides = [kind == "sliding_attention" for kind in theirs.layer_types]
        assert [spec.window(i) for i in range(layers)] == [theirs.sliding_window if on else None for on in slides]
        assert spec.shared_width == theirs.shared_expert_intermediate_size
    else:
        assert spec.shared_width == (theirs.intermediate_size if spec.architecture == "hunyuan_v1_moe" else 0)
    if spec.architecture == "hunyuan_v1_moe":
        assert [spec.window(i) for i in range(layers)] == [None] * layers
    elif spec.architecture in ("mixtral", "qwen3_moe"):
        assert [spec.window(i) for i in range(layers)] == [theirs.sliding_window] * layers


FOLDERS = [
    (A13B, {}), (A13B, {"moe_topk": [8] * 30 + [4, 2]}), (MIXTRAL, {}), (MIXTRAL, {"sliding_window": 4096}), (QWEN3, {}),
    (QWEN3, {"use_sliding_window": True, "sliding_window": 512}), (QWEN3, {"attention_bias": True, "decoder_sparse_step": 2}),
    (QWEN3, {"mlp_only_layers": [1, 5], "tie_word_embeddings": True, "torch_dtype": "float16"}),
    (QWEN3, {"rope_theta": None, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
                                                     "original_max_position_embeddings": 32768}}),
    (QWEN3, {"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 16, "beta_slow": 2, "truncate": False,
                              "attention_factor": 0.9, "original_max_position_embeddings": 20000}}),
    (QWEN2, {}), (QWEN2, {"use_sliding_window": True, "max_window_layers": 6, "sliding_window": 64}),
    (QWEN2, {"qkv_bias": False, "rope_scaling": {"type": "linear", "factor": 2.0}}),
]  # fmt: skip


@pytest.mark.parametrize(("config", "changes"), FOLDERS)
def test_every_field_is_that_of_the_class_in_transformers(
    tmp_path: Path, config: dict[str, Any], changes: dict[str, Any]
) -> None:
    folder = write(tmp_path, config, **changes)
    agree(folder, CLASSES[config["model_type"]].from_pretrained(folder))


@pytest.mark.parametrize("config", [A13B, MIXTRAL, QWEN3, QWEN2], ids=lambda c: c["model_type"])
def test_what_is_absent_is_what_the_class_takes(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = write(tmp_path, {key: value for key, value in config.items() if key in REQUIRED})
    theirs = CLASSES[config["model_type"]].from_pretrained(folder)
    for token in ("eos_token_id",):  # a checkpoint without one has none: its class names that of another vocabulary
        setattr(theirs, token, None)
    agree(folder, theirs)


@pytest.mark.parametrize("config", [A13B, MIXTRAL, QWEN3, QWEN2], ids=lambda c: c["model_type"])
def test_keys_that_the_class_knows_are_read_and_others_are_named(tmp_path: Path, config: dict[str, Any]) -> None:
    known = CLASSES[config["model_type"]]().to_dict()
    every = {key: value for key, value in known.items() if value is not None} | config
    if "head_dim" in known:
        every["head_dim"] = 128
    assert ignored_keys(write(tmp_path, every)) == [key for key in ignored_keys(write(tmp_path, config))]
    strange = ignored_keys(write(tmp_path, every, attn_logit_softcapping=30.0, yarn_typo=1))
    assert {"attn_logit_softcapping", "yarn_typo"} <= set(strange)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_under_any_key_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    config = data.draw(st.sampled_from([A13B, MIXTRAL, QWEN3, QWEN2]))
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=4,
    )
    keys = data.draw(st.lists(st.sampled_from(sorted(config)), max_size=3))
    try:
        spec = load_spec(write(tmp_path, config, **{key: data.draw(anything) for key in keys}))
    except UserError:
        return
    assert spec.experts.moe_layers >= 1
    assert len(spec.windows) in (0, spec.layers)
