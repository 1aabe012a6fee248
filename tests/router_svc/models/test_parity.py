"""Logits and greedy tokens of every architecture against transformers, through pages, chunks and mixed batches."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from experts.checkpoint.reader import CheckpointReader
from experts.epoch.agreement import StepWish
from experts.exchange.local import LocalExchange
from experts.exchange.wire import Route
from experts.layers import ExpertLayers
from experts.placement import Placement
from experts.slots.ffn import swiglu_reference
from experts.slots.loader import load_slots
from experts.slots.slots import ExpertSlots
from router_svc.models.batch import ForwardBatch, KVCache
from router_svc.models.decoder import CausalModel, ExpertsCall, build_model
from router_svc.models.registry import load_spec
from router_svc.models.spec import ModelSpec
from router_svc.request import EngineRequest
from tests import checkpoints
from tests.engines import renamed, running, sampling

BLOCK = 4


@pytest.fixture(scope="module", params=sorted(checkpoints.ARCHITECTURES))
def folder(request: pytest.FixtureRequest) -> Path:
    return checkpoints.shared(request.param)


def reference_experts(spec: ModelSpec, reader: CheckpointReader, device: str = "cpu") -> ExpertsCall:
    """Every expert by its own two products: the plain statement of what an exchange must give."""
    experts, names = spec.experts, spec.experts.names
    weights = []
    for layer in experts.layers:
        w13 = torch.empty(experts.experts, 2 * experts.width, experts.hidden)
        w2 = torch.empty(experts.experts, experts.hidden, experts.width)
        for e in range(experts.experts):
            reader.read_into(names.gate.format(layer=layer, expert=e), w13[e, : experts.width])
            reader.read_into(names.up.format(layer=layer, expert=e), w13[e, experts.width :])
            reader.read_into(names.down.format(layer=layer, expert=e), w2[e])
        weights.append((w13.to(device), w2.to(device)))

    def call(layer: int, x: torch.Tensor, route: Route) -> torch.Tensor:
        return swiglu_reference(x, route.ids, route.weights, *weights[layer])

    return call


class Pages:
    """Scattered block tables for a few sequences."""

    def __init__(self, model: CausalModel, sequences: int, longest: int) -> None:
        per_sequence = -(-longest // BLOCK)
        numbers = list(range(sequences * per_sequence))
        random.Random(5).shuffle(numbers)
        self.tables = torch.tensor(numbers).view(sequences, per_sequence)
        spec = model.spec
        self.device = model.device
        self.cache = KVCache.allocate(
            spec.layers, len(numbers), BLOCK, spec.kv_heads, spec.head_dim, model.dtype, model.device
        )

    def batch(self, rows: list[tuple[int, int, list[int]]], every_logit: bool) -> ForwardBatch:
        """rows: (sequence, first position, ids)."""
        ids, positions, slots, wanted = [], [], [], []
        for sequence, first, tokens in rows:
            span = torch.arange(first, first + len(tokens))
            wanted.extend(range(len(ids), len(ids) + len(tokens)) if every_logit else [len(ids) + len(tokens) - 1])
            ids.extend(tokens)
            positions.extend(span.tolist())
            slots.extend((self.tables[sequence][span // BLOCK] * BLOCK + span % BLOCK).tolist())
        return ForwardBatch(
            ids=torch.tensor(ids, device=self.device),
            positions=torch.tensor(positions, device=self.device),
            kv_slots=torch.tensor(slots, device=self.device),
            query_lens=tuple(len(tokens) for _, _, tokens in rows),
            context_lens=tuple(first + len(tokens) for _, first, tokens in rows),
            block_tables=self.tables[[sequence for sequence, _, _ in rows]].to(self.device),
            logit_rows=torch.tensor(wanted, device=self.device),
        )


def whole_prompt(model: CausalModel, experts: ExpertsCall, ids: list[int]) -> torch.Tensor:
    pages = Pages(model, 1, len(ids))
    return model.forward(pages.batch([(0, 0, ids)], True), pages.cache, experts)


def load(folder: Path, device: str = "cpu") -> tuple[CausalModel, ExpertsCall]:
    spec, reader = load_spec(folder), CheckpointReader(folder)
    return build_model(spec, reader, torch.float32, device), reference_experts(spec, reader, device)


def prompt(length: int, seed: int) -> list[int]:
    return [random.Random(f"{seed}/{i}").randrange(1, checkpoints.VOCABULARY) for i in range(length)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_logits_on_cuda(folder: Path) -> None:
    model, experts = load(folder, "cuda")
    ids = prompt(200, 1)
    pages = Pages(model, 2, len(ids))
    parts = [
        model.forward(pages.batch([(0, at, ids[at:end]), (1, 0, ids[:end])], True), pages.cache, experts)[: end - at]
        for at, end in ((0, 100), (100, 199), (199, 200))
    ]
    assert (torch.cat(parts).cpu() - checkpoints.reference_logits(folder, ids)).abs().max() < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_logits_on_cuda_in_bfloat16(folder: Path) -> None:
    """As far from float32's as they are on the CPU: a near-tie at a gate sends a row elsewhere, so rows are not compared."""
    ids, spec, reader = prompt(200, 1), load_spec(folder), CheckpointReader(folder)
    wanted = checkpoints.reference_logits(folder, ids)
    errors = []
    for device in ("cpu", "cuda"):
        slots = ExpertSlots(spec.experts, spec.experts.experts, torch.bfloat16, device)
        placement = Placement.first(spec.experts.moe_layers, spec.experts.experts, 1, spec.experts.experts)
        load_slots(slots, placement.local(0), reader)
        exchange = LocalExchange(placement, len(ids), device)
        exchange.open_step(StepWish(prefill=len(ids)))
        layers = ExpertLayers(spec.experts, exchange, slots, torch.bfloat16, device)
        got = whole_prompt(build_model(spec, reader, torch.bfloat16, device), layers, ids).cpu()
        errors.append(float(((got - wanted).norm(dim=-1) / wanted.norm(dim=-1)).median()))
    assert errors[1] < 1.3 * errors[0], errors


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_greedy_tokens_of_an_engine_on_cuda(folder: Path) -> None:
    requests, wanted = [], []
    for length in (1, 5, 63, 200, 301):
        tokens, logits = checkpoints.reference_greedy(folder, prompt(length, 100 + length), 16)
        assert checkpoints.smallest_gap(logits) >= 1e-3, "pick another seed: a near-tie decides a token"
        wanted.append(tokens)
        requests.append(EngineRequest(f"r{length}", tuple(prompt(length, 100 + length)), sampling(16)))
    with running(folder, "cuda") as harness:
        assert harness.complete(requests) == wanted
        assert harness.complete(renamed(requests, "again")) == wanted


@pytest.mark.parametrize("chunk", [None, 64, 17])
def test_logits_of_prompts_whole_and_in_chunks(folder: Path, chunk: int | None) -> None:
    model, experts = load(folder)
    for length in (1, 2, 31, 257):
        ids = prompt(length, length)
        pages = Pages(model, 1, length)
        step = chunk or length
        parts = [
            model.forward(pages.batch([(0, at, ids[at : at + step])], True), pages.cache, experts)
            for at in range(0, length, step)
        ]
        expected = checkpoints.reference_logits(folder, ids)
        assert (torch.cat(parts) - expected).abs().max() < 1e-4


def test_greedy_tokens_of_a_mixed_batch(folder: Path) -> None:
    model, experts = load(folder)
    prompts = [prompt(length, 100 + length) for length in (1, 5, 16, 63, 200, 301)]
    wanted, count = [], 12
    for ids in prompts:
        tokens, logits = checkpoints.reference_greedy(folder, ids, count)
        assert checkpoints.smallest_gap(logits) >= 1e-3, "pick another seed: a near-tie decides a token"
        wanted.append(tokens)
    pages = Pages(model, len(prompts), max(map(len, prompts)) + count)
    got: list[list[int]] = [[] for _ in prompts]
    # One by one the sequences join while the earlier ones decode, so that batches mix prompts and single tokens.
    for step in range(count + len(prompts) - 1):
        rows = []
        for s, ids in enumerate(prompts):
            if step < s or len(got[s]) == count:
                continue
            rows.append((s, 0, ids) if not got[s] else (s, len(ids) + len(got[s]) - 1, got[s][-1:]))
        logits = model.forward(pages.batch(rows, False), pages.cache, experts)
        for (s, _, _), row in zip(rows, logits, strict=True):
            got[s].append(int(row.argmax()))
    assert got == wanted


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "hunyuan, untied, plain rope, one expert": (
        "hunyuan_v1_moe",
        {"tie_word_embeddings": False, "moe_topk": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    ),
    "hunyuan, top-k by layer": ("hunyuan_v1_moe", {"moe_topk": [4, 1, 2]}),
    "hunyuan, biases": ("hunyuan_v1_moe", {"attention_bias": True}),
    "mixtral, no window, tied, wide heads": (
        "mixtral",
        {"sliding_window": None, "tie_word_embeddings": True, "head_dim": 20},
    ),
    "qwen3, window, raw weights, sparse step": (
        "qwen3_moe",
        {
            "use_sliding_window": True,
            "sliding_window": 24,
            "norm_topk_prob": False,
            "mlp_only_layers": [],
            "decoder_sparse_step": 2,
        },
    ),
    "qwen3, yarn": (
        "qwen3_moe",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 256,
            }
        },
    ),
    "qwen3, linear rope, biases": (
        "qwen3_moe",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}, "attention_bias": True},
    ),
    "qwen2, windows on some layers, renormalised": (
        "qwen2_moe",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2, "norm_topk_prob": True},
    ),
    "qwen2, no biases, dense first": ("qwen2_moe", {"qkv_bias": False, "mlp_only_layers": [0]}),
}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_variants_of_the_config(variant: str, tmp_path: Path) -> None:
    architecture, overrides = VARIANTS[variant]
    folder = checkpoints.make(architecture, tmp_path / "c", seed=3, **overrides)
    model, experts = load(folder)
    ids = prompt(150, 11)
    pages = Pages(model, 1, len(ids))
    parts = [
        model.forward(pages.batch([(0, at, ids[at:end])], True), pages.cache, experts)
        for at, end in ((0, 60), (60, 61), (61, 149), (149, 150))
    ]
    assert (torch.cat(parts) - checkpoints.reference_logits(folder, ids)).abs().max() < 1e-4


def same_answers(changed: Path, original: Path) -> None:
    ids = prompt(40, 3)
    assert load_spec(changed) == load_spec(original)
    assert torch.equal(whole_prompt(*load(changed), ids), whole_prompt(*load(original), ids))


def test_the_older_dialect_gives_the_same_answers(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "c")
    checkpoints.as_transformers_4(tmp_path / "c")
    same_answers(tmp_path / "c", folder)


@pytest.mark.parametrize("model_type", ["hunyuan", "hunyuan_v1_moe"])
def test_hunyuan_as_on_the_hub(tmp_path: Path, model_type: str) -> None:
    original = checkpoints.shared("hunyuan_v1_moe")
    shutil.copytree(original, tmp_path / "c")
    checkpoints.as_hunyuan_on_the_hub(tmp_path / "c", model_type)
    same_answers(tmp_path / "c", original)


def test_a_row_does_not_see_its_neighbours(folder: Path) -> None:
    """Rows of a sequence give the same logits alone and in company, and only the rows asked for come back."""
    model, experts = load(folder)
    lengths = (3, 3, 40, 1, 7)
    pages = Pages(model, len(lengths), 40)
    prompts = [prompt(n, 50 + i) for i, n in enumerate(lengths)]
    together = model.forward(pages.batch([(i, 0, ids) for i, ids in enumerate(prompts)], False), pages.cache, experts)
    assert together.dtype == torch.float32
    assert together.is_contiguous()
    assert together.shape == (len(lengths), checkpoints.VOCABULARY)
    for ids, row in zip(prompts, together, strict=True):
        assert (whole_prompt(model, experts, ids)[-1] - row).abs().max() < 1e-4


def test_bfloat16_stays_close(folder: Path) -> None:
    """Log-probabilities of a bfloat16 run against float32: a flipped route may change a row, never the picture."""
    spec, reader = load_spec(folder), CheckpointReader(folder)
    model = build_model(spec, reader, torch.bfloat16, "cpu")
    exact = reference_experts(spec, reader)
    ids = prompt(60, 7)
    got = whole_prompt(model, lambda layer, x, route: exact(layer, x.float(), route), ids).log_softmax(-1)
    expected = checkpoints.reference_logits(folder, ids).log_softmax(-1)
    off = (got - expected).abs().mean(-1)
    assert off.median() < 0.1 * expected.std(), off
    assert torch.corrcoef(torch.stack([got.flatten(), expected.flatten()]))[0, 1] > 0.9
