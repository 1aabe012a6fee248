"""Trains the demo model from nothing: python -m router_svc.demo_model.train --out DIR.

Each step draws its batch from (seed, step), so a run that was stopped goes on as if it had not been. Every few minutes the
weights go to DIR as a checkpoint that can be served, and the state of the optimizer beside it.
"""

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F

from router_svc.demo_model.batches import Batch, draw_batch
from router_svc.demo_model.export import write_configs, write_weights
from router_svc.demo_model.network import Network, Routing, Shape
from router_svc.demo_model.vocabulary import build_tokenizer, read_tokenizer, write_tokenizer

STATE_FILE, LOG_FILE = "training_state.pt", "training_log.jsonl"
BALANCE_WEIGHT = 0.01
CAPACITY_FACTOR = 2.0
CLIP_NORM = 1.0


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


def balance_loss(routing: Routing, experts: int) -> Tensor:
    """Mean over layers of E * sum_e(share of tokens * mean probability); 1 when even. Taken over the whole mixture of a
    batch, so each domain may still prefer experts of its own."""
    losses = []
    for probabilities, chosen in zip(routing.probabilities, routing.chosen):
        share = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
        losses.append(experts * (share * probabilities.mean(0)).sum())
    return torch.stack(losses).mean()


def learning_rate(progress: float, peak: float, warmup: float = 0.03, floor: float = 0.02) -> float:
    """Linear warm-up, then a cosine to `floor` of the peak; progress in [0, 1]."""
    if progress < warmup:
        return peak * progress / warmup
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup)))))


def train_step(network: Network, optimizer: torch.optim.Optimizer, batch: Batch) -> dict[str, float]:
    """One update; returns the losses and the gradient's norm."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, routing = network(batch.ids, batch.rows, CAPACITY_FACTOR)
        logits = network.logits(hidden[batch.sources])
    loss = F.cross_entropy(logits.float(), batch.targets)
    balance = balance_loss(routing, network.shape.experts)
    optimizer.zero_grad(set_to_none=True)
    (loss + BALANCE_WEIGHT * balance).backward()
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
    optimizer.step()
    return {"loss": loss.item(), "balance": balance.item(), "grad_norm": norm.item()}


def save(folder: Path, network: Network, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Writes the servable weights, then the state to go on from."""
    write_weights(network, folder)
    part = folder / f"{STATE_FILE}.part"
    torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict(), "progress": vars(progress)}, part)
    os.replace(part, folder / STATE_FILE)


def restore(folder: Path, network: Network, optimizer: torch.optim.Optimizer) -> Progress:
    """Goes on from the state in the folder; a new run when there is none."""
    if not (folder / STATE_FILE).exists():
        return Progress()
    state = torch.load(folder / STATE_FILE, weights_only=True)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])


def make_optimizer(network: Network) -> torch.optim.Optimizer:
    """AdamW with decay on matrices only."""
    matrices = [weight for weight in network.parameters() if weight.dim() > 1]
    vectors = [weight for weight in network.parameters() if weight.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-9, fused=True)


def train(options: argparse.Namespace) -> None:
    """Runs until options.tokens are seen, saving on the way."""
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer.json").exists():
        write_tokenizer(build_tokenizer(), folder)
    tokenizer, network = read_tokenizer(folder), Network(Shape())
    write_configs(network.shape, folder)
    network.initialise(torch.Generator().manual_seed(options.seed))
    optimizer = make_optimizer(network)
    progress = restore(folder, network, optimizer)
    saved = now = time.monotonic()
    while progress.tokens < options.tokens:
        rate = learning_rate(progress.tokens / options.tokens, options.peak_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = draw_batch(Random(f"{options.seed}:{progress.step}"), tokenizer, options.batch_tokens)
        measured = train_step(network, optimizer, batch)
        before, now = now, time.monotonic()
        progress = Progress(progress.step + 1, progress.tokens + len(batch.ids), progress.seconds + now - before)
        if progress.step % options.log_every == 0:
            write_log(folder, progress, measured | {"rate": rate})
        if now - saved > 60 * options.save_minutes:
            save(folder, network, optimizer, progress)
            saved = now
    save(folder, network, optimizer, progress)


def write_log(folder: Path, progress: Progress, measured: dict[str, float]) -> None:
    """Appends a line to the log and prints it."""
    line = json.dumps(vars(progress) | measured, default=float)
    print(line, flush=True)
    with (folder / LOG_FILE).open("a") as log:
        log.write(line + "\n")


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint; a stopped run there is continued")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=16_000_000, help="tokens to train on")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens a step")
    parser.add_argument("--peak-rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log-every", type=int, default=20, help="steps between log lines")
    parser.add_argument("--save-minutes", type=float, default=2.0, help="minutes between saved states")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options)


if __name__ == "__main__":
    main()
