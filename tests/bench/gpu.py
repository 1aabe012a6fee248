"""Figures of one GPU: what it can do at most, and what this code makes of it at Hunyuan-A13B's shape.

    python -m tests.bench.gpu [--part ceilings|wait|experts|step|peer] [--layers 8] [--json FILE]

Needs a CUDA device, no Ray and no checkpoint: weights are random. Times are medians of events on the device. Experts are
judged by the bytes of the weights that a batch touches over the measured copy rate, many rows by the measured matrix rate.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from experts.checkpoint.reader import Job
from experts.epoch.agreement import StepWish
from experts.exchange.local import LocalExchange
from experts.exchange.nccl import NcclGroup
from experts.layers import ExpertLayers
from experts.placement import Placement
from experts.slots.ffn import grouped_swiglu
from experts.slots.slots import ExpertSlots
from router_svc.models.batch import ForwardBatch, KVCache
from router_svc.models.decoder import CausalModel
from router_svc.models.registry import load_spec
from router_svc.models.weights import WeightLoader

DEVICE, DTYPE = "cuda", torch.bfloat16
A13B: dict[str, Any] = {
    "architectures": ["HunYuanMoEV1ForCausalLM"], "model_type": "hunyuan_v1_moe", "vocab_size": 128167,
    "hidden_size": 4096, "intermediate_size": 3072, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "num_experts": 64, "moe_topk": 8, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "hidden_act": "silu", "dtype": "bfloat16", "attention_bias": False,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 1000.0, "factor": 1.0},
}  # fmt: skip
BLOCK, CONTEXT = 16, 2048


def median_ms(work: Callable[[], object], seconds: float = 1.0, least: int = 5) -> float:
    """Milliseconds of `work` on the device, between events; the first three runs do not count."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    times, until = [], time.monotonic() + seconds
    while len(times) < least or (time.monotonic() < until and len(times) < 500):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def launches(work: Callable[[], object]) -> dict[str, int]:
    """What one run of `work` asks of the driver: kernels, copies, and waits of the host."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        work()
        torch.cuda.synchronize()
    counts = {"kernels": 0, "copies": 0, "host waits": -1}  # the last wait is this function's own
    for event in profile.key_averages():
        name = event.key
        if name.startswith(("cudaLaunchKernel", "cuLaunchKernel")):
            counts["kernels"] += event.count
        elif name.startswith(("cudaMemcpyAsync", "cudaMemsetAsync")):
            counts["copies"] += event.count
        elif name.startswith(("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")):
            counts["host waits"] += event.count
    return counts


def ceilings() -> dict[str, float]:
    """Copy rate, bf16 matrix rate, and what launching and small copies cost."""
    copy, read = _memory_rates()
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=DTYPE) for _ in range(2))
    matrix = 2 * 8192**3 / median_ms(lambda: a @ b) / 1e9
    small, many = torch.zeros(64, device=DEVICE), 200

    def chain() -> None:
        for _ in range(many):
            small.add_(1.0)

    launch = 1e3 * median_ms(chain) / many
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain()
    node = 1e3 * median_ms(graph.replay) / many
    pageable, pinned = torch.zeros(64), torch.zeros(64).pin_memory()
    figures = {"copy GB/s": copy, "read GB/s": read, "bf16 TFLOP/s": matrix, "launch us": launch, "node us": node}
    for name, host in (("pageable", pageable), ("pinned", pinned)):
        figures[f"{name} to device us"] = _host_us(lambda host=host: small.copy_(host, non_blocking=True))
        figures[f"{name} from device us"] = _host_us(lambda host=host: host.copy_(small))
    expert = torch.empty(3 * 4096 * 3072, dtype=DTYPE)
    on_device = torch.empty_like(expert, device=DEVICE)
    figures["expert pageable ms"] = _host_us(lambda: on_device.copy_(expert), 10) / 1e3
    fixed = expert.pin_memory()
    figures["expert pinned ms"] = _host_us(lambda: on_device.copy_(fixed), 10) / 1e3
    return figures


def _memory_rates() -> tuple[float, float]:
    """GB/s of a copy, counting both sides, and of reading alone."""
    source = torch.randn(1 << 30, device=DEVICE, dtype=DTYPE)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / median_ms(lambda: target.copy_(source)) / 1e6
    return copy, source.nbytes / median_ms(lambda: source.view(torch.int32).max()) / 1e6


def _host_us(work: Callable[[], object], rounds: int = 300) -> float:
    """Microseconds of the host, whatever it starts having ended at the end."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(rounds):
        work()
    torch.cuda.synchronize()
    return 1e6 * (time.perf_counter() - started) / rounds


def wait() -> dict[str, float]:
    """Microseconds of a collective of one member: with torch's timed wait, and as the group waits."""
    group = NcclGroup(distributed.HashStore(), 0, 1, "cuda:0", 10.0)
    mine, out = torch.zeros(8, dtype=torch.int64, device=DEVICE), torch.zeros(8, dtype=torch.int64, device=DEVICE)
    limit = timedelta(seconds=10)
    a, b = (torch.randn(2048, 2048, device=DEVICE, dtype=DTYPE) for _ in range(2))

    def work() -> None:  # some tenths of a millisecond, so that the collective is not over at the first look
        for _ in range(8):
            a @ b

    def timed() -> None:
        work()
        group._open()._allgather_base(out, mine).wait(limit)

    def own() -> None:
        work()
        group.all_gather(out, mine).wait()

    def alone() -> None:
        work()
        torch.cuda.synchronize()

    figures = {
        "posted only": _host_us(lambda: group.all_gather(out, mine), 1000),
        "work alone": _host_us(alone),
        "with torch's timed wait": _host_us(timed),
        "with the group's wait": _host_us(own),
    }
    group.close()
    return figures


def experts(copy_rate: float, matrix_rate: float, rows: Iterable[int] = (1, 4, 16, 32, 128, 512, 2048, 4096)) -> Any:
    """One layer of A13B's routed experts: `grouped_swiglu` over rows. Rates: GB/s and TFLOP/s of this device."""
    hidden, width, count, top_k = 4096, 3072, 64, 8
    w13 = torch.empty(count, 2 * width, hidden, device=DEVICE, dtype=DTYPE).normal_(0, 0.02)
    w2 = torch.empty(count, hidden, width, device=DEVICE, dtype=DTYPE).normal_(0, 0.02)
    table = []
    for n in rows:
        x = torch.randn(n, hidden, device=DEVICE, dtype=DTYPE)
        slots = torch.rand(n, count, device=DEVICE).topk(top_k).indices.int()
        weights = torch.rand(n, top_k, device=DEVICE)
        touched = int(slots.unique().numel())
        ms = median_ms(lambda x=x, s=slots, w=weights: grouped_swiglu(x, s, w, w13, w2), 0.5)
        floor = max(
            1e3 * touched * 3 * width * hidden * 2 / (copy_rate * 1e9),
            1e3 * 6 * n * top_k * width * hidden / (matrix_rate * 1e12),
        )
        counts = launches(lambda x=x, s=slots, w=weights: grouped_swiglu(x, s, w, w13, w2))
        table.append({"rows": n, "experts": touched, "ms": ms, "floor ms": floor, "share": floor / ms, **counts})
    return table


class RandomReader:
    """Takes a checkpoint reader's place: every tensor exists, of any shape, and is random."""

    def has(self, name: str) -> bool:
        return name != "lm_head.weight"

    def read_many(self, jobs: Iterable[Job], progress: Callable[[int], None] | None = None) -> None:
        for _, dest, _ in jobs:
            dest.normal_(0, dest.shape[-1] ** -0.5) if dest.dim() > 1 else dest.fill_(1.0)


def step(layers: int) -> Any:
    """Forward passes of `layers` layers of A13B: decode at batch 1 to 128 over a context, and a prompt."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(A13B | {"num_hidden_layers": layers}))
        spec = load_spec(Path(folder))
    reader: Any = RandomReader()
    model = CausalModel(spec, WeightLoader(spec, reader, DTYPE, DEVICE).load(None), DTYPE, DEVICE)
    slots = ExpertSlots(spec.experts, spec.experts.experts, DTYPE, DEVICE)
    for part in (*slots.w13, *slots.w2):
        part.normal_(0, 0.02)
    placement = Placement.first(spec.experts.moe_layers, spec.experts.experts, 1, spec.experts.experts)
    exchange = LocalExchange(placement, 1 << 14)
    moe = ExpertLayers(spec.experts, exchange, slots, DTYPE, DEVICE)
    per_sequence, largest = CONTEXT // BLOCK + 1, 128
    cache = KVCache.allocate(
        spec.layers, largest * per_sequence, BLOCK, spec.kv_heads, spec.head_dim, DTYPE, DEVICE
    )  # fmt: skip
    tables = torch.arange(largest * per_sequence, device=DEVICE).view(largest, per_sequence)

    def batch(sequences: int, first: int, count: int) -> ForwardBatch:
        span = torch.arange(first, first + count, device=DEVICE)
        slots_of = (tables[:sequences, span // BLOCK] * BLOCK + span % BLOCK).flatten()
        rows = torch.arange(1, sequences + 1, device=DEVICE) * count - 1
        ids = torch.randint(1, spec.vocab_size, (sequences * count,), device=DEVICE)
        return ForwardBatch(
            ids=ids, positions=span.repeat(sequences), kv_slots=slots_of, query_lens=(count,) * sequences,
            context_lens=(first + count,) * sequences, block_tables=tables[:sequences], logit_rows=rows,
        )  # fmt: skip

    def run(of: ForwardBatch) -> Callable[[], object]:
        def once() -> None:
            tokens = len(of.ids)
            header = exchange.open_step(StepWish(decode=tokens))
            model.forward(of, cache, moe)
            moe.end_step(header)

        return once

    table = []
    for sequences, first, count in (
        (1, CONTEXT, 1),
        (16, CONTEXT, 1),
        (32, CONTEXT, 1),
        (128, CONTEXT, 1),
        (1, 0, CONTEXT),
    ):
        work = run(batch(sequences, first, count))
        ms = median_ms(work, 2.0)
        moe.loads.drain()
        found = {
            "sequences": sequences,
            "tokens": sequences * count,
            "ms": ms,
            "ms a layer": ms / layers,
            **launches(work),
        }
        table.append(found)
    return table


@torch.inference_mode()
def peer(layers: int) -> Any:
    """The same passes by transformers, with its own choice of kernels."""
    import transformers

    table = []
    config = transformers.HunYuanMoEV1Config(
        **{k: v for k, v in A13B.items() if k not in ("architectures", "model_type")}, num_hidden_layers=layers
    )
    torch.set_default_dtype(DTYPE)
    with torch.device(DEVICE):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=DTYPE).eval()
    torch.set_default_dtype(torch.float32)
    for sequences, context in ((1, CONTEXT), (16, CONTEXT), (32, CONTEXT), (128, CONTEXT)):
        shape = (sequences, config.num_key_value_heads, context, config.head_dim)
        past = transformers.DynamicCache()
        for layer in range(layers):
            past.update(
                torch.randn(shape, device=DEVICE, dtype=DTYPE), torch.randn(shape, device=DEVICE, dtype=DTYPE), layer
            )
        ids = torch.randint(1, config.vocab_size, (sequences, 1), device=DEVICE)

        def once(ids: torch.Tensor = ids, past: Any = past) -> None:
            model(ids, past_key_values=past, use_cache=True)
            past.crop(-1)

        ms = median_ms(once, 2.0)
        table.append(
            {"sequences": sequences, "tokens": sequences, "ms": ms, "ms a layer": ms / layers, **launches(once)}
        )
        del past
    prompt = torch.randint(1, config.vocab_size, (1, CONTEXT), device=DEVICE)
    whole = lambda: model(prompt, use_cache=True, logits_to_keep=1)  # noqa: E731
    ms = median_ms(whole, 2.0)
    table.append({"sequences": 1, "tokens": CONTEXT, "ms": ms, "ms a layer": ms / layers, **launches(whole)})
    return table


def _show(name: str, figures: Any) -> None:
    print(f"== {name}")
    for row in figures if isinstance(figures, list) else [figures]:
        print(
            "  " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=("ceilings", "wait", "experts", "step", "peer"))
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device")
    parts = options.part or ["ceilings", "wait", "experts", "step", "peer"]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, NCCL {torch.cuda.nccl.version()}")
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    limits = ceilings() if {"ceilings", "experts"} & set(parts) else {}
    if limits:
        found["ceilings"] = limits
        _show("ceilings", limits)
    work: dict[str, Callable[[], Any]] = {
        "wait": wait,
        "experts": lambda: experts(max(limits["copy GB/s"], limits["read GB/s"]), limits["bf16 TFLOP/s"]),
        "step": lambda: step(options.layers),
        "peer": lambda: peer(options.layers),
    }
    for part in parts:
        if part in work:
            found[part] = work[part]()
            _show(part, found[part])
            torch.cuda.empty_cache()
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
