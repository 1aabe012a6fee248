"""Published figures of real GPUs, and what the capacity model says of the same settings.

    python -m tests.cluster.simulate.published

prints the table of docs/balancing.md. `band` is the factor, either way, that the test holds a prediction to.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.simulate.capacity import Load, Prediction, predict
from cluster.simulate.hardware import hardware
from cluster.simulate.model_sizes import load_sizes
from cluster.simulate.sizes import Sizes

A13B: dict[str, Any] = {
    "architectures": ["HunYuanMoEV1ForCausalLM"], "model_type": "hunyuan_v1_moe", "vocab_size": 128167,
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "attention_head_dim": 128, "head_dim": 128, "intermediate_size": 3072, "moe_intermediate_size": [3072],
    "num_experts": 64, "moe_topk": [8], "num_shared_expert": [1], "use_mixed_mlp_moe": True, "use_qk_norm": True,
    "use_cla": False, "norm_topk_prob": True, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 32768, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}  # fmt: skip
MIXTRAL: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    "num_local_experts": 8, "num_experts_per_tok": 2, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 1e6,
    "max_position_embeddings": 32768, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
DEEPSEEK_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168,
    "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "first_k_dense_replace": 3, "moe_layer_freq": 1, "tie_word_embeddings": False,
}  # fmt: skip

SGLANG = "https://lmsys.org/blog/2025-05-05-large-scale-ep/"
DAY_6 = (
    "https://github.com/deepseek-ai/open-infra-index/blob/main/202502OpenSourceWeek/"
    "day_6_one_more_thing_deepseekV3R1_inference_system_overview.md"
)
RTP = "https://github.com/alibaba/rtp-llm/blob/main/docs/RTP-LLM-DeepSeek-Replay-Tech-Report.md"
TENCENT = "https://github.com/Tencent-Hunyuan/Hunyuan-A13B/blob/main/README_CN.md"
BASETEN = "https://www.baseten.co/blog/faster-mixtral-inference-with-tensorrt-llm-and-quantization/"
DEEPEP = "https://github.com/deepseek-ai/DeepEP/blob/main/docs/legacy.md"  # low-latency kernels, H800, 128 tokens a GPU

# Microseconds of dispatch and combine of one layer of DeepSeek-V3, by GPUs.
DEEPEP_MICROSECONDS = {32: 155 + 273, 64: 173 + 314, 128: 192 + 369}


@dataclass(frozen=True, slots=True)
class Case:
    """published: tokens/s of all GPUs together; lacks: what the model can't say of this case; band: see above; chosen:
    the constant that was chosen on it; the others are held out."""

    name: str
    machine: str
    config: dict[str, Any]
    ranks: int
    load: Load
    published: float
    source: str
    lacks: str
    band: float
    chosen: str = ""


def _hunyuan(gpus: int, batch: int, published: float, lacks: str, band: float, weights: str = "bfloat16") -> Case:
    """vLLM, 2,048 tokens in, 14,336 out, so 9,216 in the cache on average. The page writes "H80 (96G)"; 96 GB: H20."""
    return Case(
        f"Hunyuan-A13B {weights}, {gpus} x H20, batch {batch}", "h20", A13B, gpus,
        Load(batch, 9216, weights, excess=0, shards=gpus), published, TENCENT, lacks, band,
        chosen="layer_latency" if batch == 1 and weights == "bfloat16" else "",
    )  # fmt: skip


def _prefill(
    name: str, machine: str, context: int, per_node: float, source: str, lacks: str, band: float, own: int = 16384
) -> Case:
    """32 GPUs, `own` tokens a GPU, 288 slots, two-batch overlap."""
    load = Load(32 * own, context, "fp8", 9, 0.0, prefill=True, exchange="fp8-per-node", overlap=True)
    return Case(
        f"DeepSeek-V3 prefill, {name}, 32 x {machine[:4].upper()}", machine, DEEPSEEK_V3, 32, load, 4 * per_node,
        source, lacks, band,
    )  # fmt: skip


def _decode(
    name: str, machine: str, gpus: int, batch: int, context: int, per_node: float, source: str, lacks: str,
    band: float, overlap: bool = True, chosen: str = "",
) -> Case:  # fmt: skip
    """batch: sequences of a GPU."""
    load = Load(gpus * batch, context, "fp8", excess=0.0, exchange="fp8", overlap=overlap)
    return Case(
        f"DeepSeek-V3 decode, {name}, {gpus} x {machine[:4].upper()}", machine, DEEPSEEK_V3, gpus, load,
        gpus / 8 * per_node, source, lacks, band, chosen,
    )  # fmt: skip


SPLIT = "each expert split there, whole experts a rank here"
PROMPTS = "as above; prompts are in the published time"
UNPACKING = "unpacking int8 costs nothing here"
SLOW = "that engine's fp8 is slower than its int8"
CORES = "the exchange takes none of a GPU's cores"
CASES = (
    _hunyuan(8, 1, 190.84, SPLIT, 1.25),
    _hunyuan(4, 1, 158.90, SPLIT, 1.25),
    _hunyuan(2, 1, 111.72, SPLIT, 1.25),
    _hunyuan(8, 16, 1246.54, PROMPTS, 1.4),
    _hunyuan(8, 32, 1981.99, PROMPTS, 1.4),
    _hunyuan(4, 16, 779.10, PROMPTS, 1.4),
    _hunyuan(4, 32, 1301.75, PROMPTS, 1.4),
    _hunyuan(2, 1, 109.10, UNPACKING, 2.4, "int8"),
    _hunyuan(2, 16, 444.17, UNPACKING, 2.4, "int8"),
    _hunyuan(2, 32, 721.93, UNPACKING, 2.4, "int8"),
    _hunyuan(2, 1, 91.83, SLOW, 2.4, "fp8"),
    _hunyuan(2, 16, 372.01, SLOW, 2.4, "fp8"),
    _hunyuan(2, 32, 617.70, SLOW, 2.4, "fp8"),
    _hunyuan(1, 1, 60.07, SLOW, 2.4, "fp8"),
    Case(
        "Mixtral-8x7B int8, 1 x A100, batch 1", "a100-80g", MIXTRAL, 1, Load(1, 576, "int8", excess=0), 81, BASETEN,
        UNPACKING, 1.25,
    ),
    _prefill("SGLang, balanced", "h100-80g", 4096, 59337, SGLANG, CORES, 1.25),
    _prefill("SGLang, 4k prompts", "h100-80g", 4096, 50302, SGLANG, CORES + "; the run's excess", 1.25),
    _prefill("SGLang, 2k prompts", "h100-80g", 2000, 54543, SGLANG, CORES + "; the run's excess", 1.25),
    _prefill("DeepSeek's profile", "h800", 4096, 62713, SGLANG, CORES, 1.25),
    _prefill("RTP-LLM", "h800", 4096, 8 * 5333, RTP, CORES + "; the run's excess", 1.5, 8192),
    _decode("SGLang, overlap", "h100-80g", 72, 256, 2000, 22282, SGLANG, "the run's excess", 1.25, chosen="_HIDDEN"),
    _decode("SGLang, no overlap", "h100-80g", 72, 256, 2000, 22310 / 1.255, SGLANG, "the run's excess", 1.25, overlap=False),
    _decode("DeepSeek's profile", "h800", 128, 128, 4096, 18598, SGLANG, "draft tokens, if there were any", 1.25),
    _decode("DeepSeek's service", "h800", 144, 128, 4989, 14800, DAY_6, "a day's mean, and draft tokens", 1.25),
)  # fmt: skip


def sizes_of(config: dict[str, Any]) -> Sizes:
    """Of a config.json, through a folder as a user has it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        return load_sizes(Path(folder))


def predicted(case: Case) -> Prediction:
    """What the model says of a case."""
    return predict(sizes_of(case.config), hardware(case.machine), case.ranks, case.load)


def predicted_exchange(gpus: int) -> float:
    """Microseconds of dispatch and combine of one layer, as DEEPEP_MICROSECONDS has them."""
    sizes = sizes_of(DEEPSEEK_V3)
    load = Load(128 * gpus, weights="fp8", excess=0.0, exchange="fp8")
    return 1e6 * predict(sizes, hardware("h800"), gpus, load).network / sizes.moe_layers


def main() -> None:
    """The table as Markdown."""
    print("| case | published | predicted | ratio | what the model lacks |\n|---|---|---|---|---|")
    for case in CASES:
        got = predicted(case).tokens_per_second
        mark = f" (`{case.chosen}` chosen on it)" if case.chosen else ""
        print(f"| {case.name}{mark} | {case.published:,.0f} | {got:,.0f} | {got / case.published:.2f} | {case.lacks} |")
    for gpus, published in DEEPEP_MICROSECONDS.items():
        got = predicted_exchange(gpus)
        name = f"DeepEP dispatch and combine of a layer, {gpus} x H800, µs"
        print(f"| {name} | {published} | {got:.0f} | {got / published:.2f} | inside a node it uses links |")


if __name__ == "__main__":
    main()
