"""Train the demo model from scratch on drawn documents.

    python -m router_svc.demo_model.train --out DIR --seed 1 --minutes 30

Writes a whole checkpoint into DIR every few minutes, with training_log.jsonl beside it. The seed fixes data and
first weights; the time limit decides how far it gets (the learning rate falls with the share of it that is used).
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn import functional

from router_svc.demo_model.corpus import draw_document
from router_svc.demo_model.network import Network, Shape, config_json, export
from router_svc.demo_model.vocabulary import save_tokenizer, train_tokenizer

ROWS, LENGTH = 24, 256
PEAK_RATE, LAST_RATE, WARM_UP = 4e-3, 1e-4, 100  # the last in steps
BALANCE = 0.002  # keeps experts alive and leaves domains apart
CAPACITY = 1.5
SAVE_EVERY = 180.0  # seconds


def packed_rows(tokenizer: Tokenizer, rng: Random) -> Iterator[tuple[list[int], list[int], list[int], list[int]]]:
    """Rows of LENGTH: (ids, positions, document numbers, 1 where the NEXT token is to be learnt). Documents are not cut
    unless longer than a row."""
    ids: list[int] = []
    positions: list[int] = []
    owners: list[int] = []
    learnt: list[int] = []
    document = 0
    while True:
        drawn = draw_document(rng)
        prompt = tokenizer.encode(drawn.prompt, add_special_tokens=False).ids
        target = tokenizer.encode(drawn.target, add_special_tokens=False).ids
        tokens = (prompt + target)[:LENGTH]
        if len(ids) + len(tokens) > LENGTH:
            pad = LENGTH - len(ids)
            yield ids + [4] * pad, positions + [0] * pad, owners + [-1] * pad, learnt + [0] * pad
            ids, positions, owners, learnt, document = [], [], [], [], 0
        first = max(len(prompt), 1) - 1
        ids += tokens
        positions += range(len(tokens))
        owners += [document] * len(tokens)
        learnt += [int(first <= i < len(tokens) - 1) for i in range(len(tokens))]
        document += 1


def batches(tokenizer: Tokenizer, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """ids, positions, mask [B, 1, N, N], learnt [B, N]."""
    rows = packed_rows(tokenizer, Random(seed))
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    while True:
        ids, positions, owners, learnt = (
            torch.tensor(part) for part in zip(*(next(rows) for _ in range(ROWS)), strict=True)
        )
        mask = (owners[:, :, None] == owners[:, None, :]) & causal
        yield ids, positions, mask[:, None], learnt.bool()


def rate(step: int, used: float) -> float:
    """Learning rate: linear warm-up in steps, then a cosine over the share of time used."""
    cosine = LAST_RATE + (PEAK_RATE - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * min(used, 1.0)))
    return cosine * min(1.0, (step + 1) / WARM_UP)


def save(network: Network, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a complete Hugging Face folder; the weights appear at once or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(network.shape), indent=2) + "\n")
    generation = {"do_sample": False, "eos_token_id": [3, 10], "pad_token_id": 4}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    save_tokenizer(tokenizer, folder)
    save_file(export(network), folder / "model.partial", metadata={"format": "pt"})
    (folder / "model.partial").rename(folder / "model.safetensors")


def train(out: Path, seed: int, minutes: float) -> None:
    """The whole training; see the module's docstring."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(seed)
    network = Network(Shape(vocab=tokenizer.get_vocab_size()))
    matrices = [p for p in network.parameters() if p.dim() > 1]
    vectors = [p for p in network.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=True)
    start = saved = time.monotonic()
    save(network, tokenizer, out)
    log = (out / "training_log.jsonl").open("w", buffering=1)
    seen = 0
    for step, (ids, positions, mask, learnt) in enumerate(batches(tokenizer, seed + 1)):
        used = (time.monotonic() - start) / (60 * minutes)
        if used >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = rate(step, used)
        states, balance, _ = network(ids, positions, mask, CAPACITY)
        wanted = ids[:, 1:][learnt[:, :-1]]
        loss = functional.cross_entropy(network.logits(states[:, :-1][learnt[:, :-1]]), wanted)
        optimiser.zero_grad(set_to_none=True)
        (loss + BALANCE * balance).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        seen += ids.numel()
        if step % 20 == 0:
            row = {"step": step, "tokens": seen, "loss": round(loss.item(), 4), "balance": round(balance.item(), 3)}
            log.write(json.dumps(row | {"seconds": round(time.monotonic() - start, 1)}) + "\n")
        if time.monotonic() - saved > SAVE_EVERY:
            save(network, tokenizer, out)
            saved = time.monotonic()
    save(network, tokenizer, out)
    log.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and the log")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=30.0)
    arguments = parser.parse_args()
    train(arguments.out, arguments.seed, arguments.minutes)


if __name__ == "__main__":
    main()
