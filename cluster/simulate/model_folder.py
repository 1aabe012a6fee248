"""A checkpoint folder with nothing but random routed experts, for simulations over real actors."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, WIDTH = 32, 16


def write_experts(folder: Path, layers: int, experts: int, top_k: int) -> None:
    """config.json and model.safetensors of a Hunyuan-shaped model of which only the experts exist; real, but small."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["HunYuanMoEV1ForCausalLM"], "model_type": "hunyuan_v1_moe", "vocab_size": 64,
        "hidden_size": HIDDEN, "num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 16, "attention_head_dim": 16, "intermediate_size": WIDTH, "moe_intermediate_size": WIDTH,
        "num_experts": experts, "moe_topk": top_k, "num_shared_expert": 1, "use_mixed_mlp_moe": True,
        "use_qk_norm": True, "use_cla": False, "norm_topk_prob": True, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": 128, "tie_word_embeddings": True, "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(layers):
        for expert in range(experts):
            name = f"model.layers.{layer}.mlp.experts.{expert}"
            for part, shape in (("gate", (WIDTH, HIDDEN)), ("up", (WIDTH, HIDDEN)), ("down", (HIDDEN, WIDTH))):
                tensors[f"{name}.{part}_proj.weight"] = torch.randn(shape, generator=generator) / shape[1] ** 0.5
    save_file(tensors, folder / "model.safetensors")
