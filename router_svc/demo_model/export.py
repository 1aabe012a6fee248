"""A network to and from a Hugging Face checkpoint: Hunyuan's tensor names, config.json and generation_config.json.

Knows names and files; nothing of training or text.
"""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from router_svc.demo_model.chat import END_OF_ASSISTANT, END_OF_TEXT, END_OF_USER, START
from router_svc.demo_model.network import Block, Network, Shape
from router_svc.demo_model.vocabulary import MODEL_MAX_LENGTH, SPECIALS, VOCAB_SIZE

FIRST_SPECIAL = VOCAB_SIZE - len(SPECIALS)


def special_id(name: str) -> int:
    """The id of a special token; they stand at the end of the vocabulary."""
    return FIRST_SPECIAL + SPECIALS.index(name)


def model_config(shape: Shape) -> dict[str, object]:
    """config.json, with the keys of Hunyuan-A13B-Instruct's."""
    return {
        "architectures": ["HunYuanMoEV1ForCausalLM"], "model_type": "hunyuan_v1_moe", "torch_dtype": "bfloat16",
        "vocab_size": shape.vocab, "org_vocab_size": shape.vocab, "hidden_size": shape.hidden, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.key_heads,
        "head_dim": shape.head_size, "attention_head_dim": shape.head_size,
        "intermediate_size": shape.width, "moe_intermediate_size": [shape.width] * shape.layers,
        "num_experts": shape.experts, "moe_topk": [shape.top_k] * shape.layers, "num_shared_expert": [1] * shape.layers,
        "use_mixed_mlp_moe": True, "moe_layer_num_skipped": 0, "norm_topk_prob": True, "routed_scaling_factor": 1.0,
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0, "use_qk_norm": True, "use_cla": False,
        "rms_norm_eps": shape.norm_eps, "rope_theta": shape.rope_theta,
        "rope_scaling": {
            "type": "dynamic", "alpha": shape.rope_alpha, "factor": 1.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
        },
        "max_position_embeddings": MODEL_MAX_LENGTH, "initializer_range": 0.02, "tie_word_embeddings": True, "use_cache": True,
        "bos_token_id": special_id(START), "eos_token_id": special_id(END_OF_ASSISTANT), "eod_token_id": special_id(END_OF_TEXT),
        "pad_token_id": special_id("<|pad|>"), "sep_token_id": special_id(END_OF_USER),
    }


def generation_config() -> dict[str, object]:
    """generation_config.json: greedy, since a sampled digit would be a wrong result."""
    return {
        "bos_token_id": special_id(START), "eos_token_id": [special_id(END_OF_ASSISTANT), special_id(END_OF_TEXT)],
        "pad_token_id": special_id("<|pad|>"), "do_sample": False,
    }


def block_tensors(block: Block, layer: int) -> dict[str, Tensor]:
    """Views of one block's weights by their names on disk."""
    prefix, attention, experts = f"model.layers.{layer}.", block.attention, block.experts
    named = {
        "input_layernorm": block.input_norm.weight, "post_attention_layernorm": block.experts_norm.weight,
        "self_attn.q_proj": attention.q.weight, "self_attn.k_proj": attention.k.weight, "self_attn.v_proj": attention.v.weight,
        "self_attn.o_proj": attention.o.weight, "self_attn.query_layernorm": attention.query_norm.weight,
        "self_attn.key_layernorm": attention.key_norm.weight, "mlp.gate.wg": experts.router,
    }
    split = {"mlp.shared_mlp": (experts.shared_gate_up, experts.shared_down)}
    split |= {f"mlp.experts.{number}": (experts.gate_up[number], experts.down[number]) for number in range(len(experts.gate_up))}
    for name, (gate_up, down) in split.items():
        gate, up = gate_up.chunk(2, 0)
        named |= {f"{name}.gate_proj": gate, f"{name}.up_proj": up, f"{name}.down_proj": down}
    return {f"{prefix}{name}.weight": tensor.detach() for name, tensor in named.items()}


def named_tensors(network: Network) -> dict[str, Tensor]:
    """Views of all weights by their names on disk; the tied head has none."""
    tensors = {"model.embed_tokens.weight": network.embedding.detach(), "model.norm.weight": network.norm.weight.detach()}
    for layer, block in enumerate(network.blocks):
        tensors |= block_tensors(block, layer)
    return tensors


def write_configs(shape: Shape, folder: Path) -> None:
    """Writes config.json and generation_config.json."""
    for name, content in (("config.json", model_config(shape)), ("generation_config.json", generation_config())):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def write_weights(network: Network, folder: Path) -> None:
    """Writes model.safetensors in bf16; a reader sees the old file or the new one, never a part."""
    part = folder / "model.safetensors.part"
    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in named_tensors(network).items()}
    save_file(tensors, part, metadata={"format": "pt"})
    part.chmod(0o644)
    os.replace(part, folder / "model.safetensors")


def read_shape(folder: Path) -> Shape:
    """The shape that a config.json written here states."""
    config = json.loads((folder / "config.json").read_text())
    return Shape(
        vocab=config["vocab_size"], hidden=config["hidden_size"], layers=config["num_hidden_layers"], heads=config["num_attention_heads"],
        key_heads=config["num_key_value_heads"], head_size=config["head_dim"], experts=config["num_experts"], top_k=config["moe_topk"][0],
        width=config["intermediate_size"], norm_eps=config["rms_norm_eps"], rope_theta=config["rope_theta"], rope_alpha=config["rope_scaling"]["alpha"],
    )


def read_network(folder: Path, dtype: torch.dtype = torch.float32) -> Network:
    """The network of a checkpoint written here."""
    network = Network(read_shape(folder)).to(dtype)
    stored, targets = load_file(folder / "model.safetensors"), named_tensors(network)
    if stored.keys() != targets.keys():
        raise ValueError(f"{folder}: unexpected or missing tensors {sorted(stored.keys() ^ targets.keys())[:5]}")
    for name, target in targets.items():
        target.copy_(stored[name])
    return network
