"""config.json to ModelSpec: A13B's published figures, both dialects' aliases, and everything that is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experts.errors import UserError
from router_svc.models.registry import FAMILIES, load_spec
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
        (A13B, {"moe_topk": [8] * 31 + [4]}, ("moe_topk", "the same for all layers")),
        (A13B, {"moe_topk": [65] * 32}, ("= 65", "at most num_experts = 64")),
        (A13B, {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, ("rope_type", "dynamic with alpha")),
        (A13B, {"rope_scaling": {"factor": 4.0}}, ("rope_type missing",)),
        (A13B, {"rope_scaling": "yarn"}, ("rope_scaling = 'yarn'", "an object")),
        (A13B, {"quantization_config": {"quant_method": "gptq"}}, ("gptq", "not supported yet")),
        (QWEN3, {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, ("rope_type missing", "all layers")),
        (QWEN3, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ("'llama3'",)),
        (QWEN3, {"rope_scaling": {"rope_type": "yarn", "factor": 0.0}}, ("factor = 0.0",)),
        (QWEN3, {"partial_rotary_factor": 0.5}, ("partial_rotary_factor = 0.5",)),
        (QWEN3, {"hidden_size": None}, ("hidden_size missing", "config.json")),
        (QWEN3, {"hidden_size": "2048"}, ("hidden_size = '2048'", "whole number")),
        (QWEN3, {"hidden_size": 2048.0}, ("hidden_size = 2048.0",)),
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
