"""Tiny random checkpoints of every architecture, written by transformers itself, and its answers to compare with.

    folder = checkpoints.make("mixtral", tmp_path / "mixtral")
    tokens, logits = checkpoints.reference_greedy(folder, prompt_ids, 16)

Weights are scaled up so that greedy decoding is decided by clear gaps (see `smallest_gap`).
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCABULARY = 320
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
# architecture -> (config class, model class, its own fields, max_shard_size)
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "hunyuan_v1_moe": (
        "HunYuanMoEV1Config",
        "HunYuanMoEV1ForCausalLM",
        {
            "head_dim": 16,
            "intermediate_size": 40,
            "num_experts": 16,
            "moe_topk": 4,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 1000.0, "factor": 1.0},
        },
        "60KB",
    ),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {"intermediate_size": 64, "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 40},
        "5GB",
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {
            "head_dim": 16,
            "intermediate_size": 56,
            "moe_intermediate_size": 24,
            "num_experts": 12,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
        "5GB",
    ),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {
            "intermediate_size": 56,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 32,
            "num_experts": 10,
            "num_experts_per_tok": 3,
            "norm_topk_prob": False,
        },
        "80KB",
    ),
}


def make(architecture: str, folder: Path, seed: int = 0, scale: float = 2.0, **overrides: Any) -> Path:
    """Write a float32 checkpoint with a tokenizer into `folder` and return it. overrides: fields of its config."""
    config_class, model_class, own, shard = ARCHITECTURES[architecture]
    torch.manual_seed(seed)
    config = getattr(transformers, config_class)(
        **{**_SHAPE, **own, **overrides, "eos_token_id": 0, "bos_token_id": None}
    )
    model = getattr(transformers, model_class)(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, scale * parameter.shape[-1] ** -0.5)
            elif name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder, max_shard_size=shard)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer.json: ids 0..63 are specials and fillers, 64..319 the bytes; any text round-trips."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|endoftext|>", *(f"<|extra_{i}|>" for i in range(VOCABULARY - len(alphabet) - 1)), *alphabet]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(words[: VOCABULARY - len(alphabet)])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, "eos_token": words[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def edit_config(folder: Path, drop: tuple[str, ...] = (), **values: Any) -> None:
    """Rewrite config.json in place: drop keys, then set others."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key in drop:
        config.pop(key, None)
    config.update(values)
    path.write_text(json.dumps(config))


@cache
def reference_model(folder: Path) -> Any:
    """The checkpoint in transformers: float32, eager attention."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


@torch.inference_mode()
def reference_logits(folder: Path, ids: list[int]) -> torch.Tensor:
    """[len(ids), V] float32 logits of one sequence."""
    return reference_model(folder)(torch.tensor([ids])).logits[0]


@torch.inference_mode()
def reference_greedy(folder: Path, ids: list[int], count: int) -> tuple[list[int], torch.Tensor]:
    """(tokens, their logits [count, V]) of transformers' greedy decoding that does not stop at eos."""
    model, tokens, rows = reference_model(folder), list(ids), []
    past, step = None, torch.tensor([ids])
    for _ in range(count):
        out = model(step, past_key_values=past, use_cache=True)
        past = out.past_key_values
        rows.append(out.logits[0, -1])
        tokens.append(int(rows[-1].argmax()))
        step = torch.tensor([tokens[-1:]])
    return tokens[len(ids) :], torch.stack(rows)


def smallest_gap(logits: torch.Tensor) -> float:
    """The least distance between the best and the second-best logit over rows."""
    top = logits.topk(2, dim=-1).values
    return float((top[..., 0] - top[..., 1]).min())
