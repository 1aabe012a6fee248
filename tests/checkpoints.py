"""Tiny random checkpoints of every architecture, written by transformers itself, and its answers to compare with.

    folder = checkpoints.shared("mixtral")                    # one for the whole session: never write to it
    folder = checkpoints.make("mixtral", tmp_path / "own")    # of your own; overrides are fields of its config
    tokens, logits = checkpoints.reference_greedy(folder, prompt_ids, 16)
    assert checkpoints.smallest_gap(logits) >= 1e-3           # or the tokens are decided by rounding

Importing this sets torch to one thread: the products are tiny, and a second thread on a busy machine waits for whole
scheduler slices (5 s of tests took 130 s).
"""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

torch.set_num_threads(1)

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


def make(architecture: str, folder: Path, seed: int = 0, scale: float = 1.5, **overrides: Any) -> Path:
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


@cache
def shared(architecture: str) -> Path:
    """The checkpoint of `architecture` with its default fields, written once a session. Read-only for its users."""
    folder = Path(tempfile.mkdtemp(prefix=f"tokenyard-{architecture}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make(architecture, folder)


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


def as_transformers_4(folder: Path) -> None:
    """Rewrite config.json in place to the older dialect: rope_theta and rope_scaling, torch_dtype."""
    config = json.loads((folder / "config.json").read_text())
    rope = dict(config["rope_parameters"])
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    scaling = None if kind == "default" else {"type": kind, **rope}
    edit_config(folder, ("rope_parameters", "dtype"), rope_theta=theta, rope_scaling=scaling, torch_dtype="float32")


def as_hunyuan_on_the_hub(folder: Path, model_type: str = "hunyuan_v1_moe") -> None:
    """Rewrite a Hunyuan config.json in place as A13B's is: lists per layer, attention_head_dim, inert leftovers."""
    as_transformers_4(folder)
    config = json.loads((folder / "config.json").read_text())
    layers = config["num_hidden_layers"]
    rope = config["rope_scaling"]
    edit_config(
        folder,
        ("head_dim",),
        model_type=model_type,
        attention_head_dim=config["head_dim"],
        moe_topk=[config["moe_topk"]] * layers,
        moe_intermediate_size=[config["intermediate_size"]] * layers,
        num_shared_expert=[1] * layers,
        rope_scaling={**rope, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0} if rope else None,
        use_mixed_mlp_moe=True,
        moe_layer_num_skipped=0,
        moe_drop_tokens=False,
        use_cla=False,
        cla_share_factor=2,
        use_mla=False,
        use_qk_norm=True,
        norm_topk_prob=True,
        routed_scaling_factor=1.0,
        group_limited_greedy=False,
        mlp_bias=False,
        org_vocab_size=config["vocab_size"],
        bos_token_id=1,
        anyres_vit_max_image_size=None,
    )


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
