"""Measure the demo model: held-out tasks against a running server, and how apart the domains' experts are.

    tokenyard serve --expert-workers 0 &
    python -m router_svc.demo_model.evaluate --target 127.0.0.1:50051 --count 500 --out evaluation.json

Accuracy is what a client gets: greedy answers through the whole server, which drops no token.
"""

import argparse
import asyncio
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from router_svc.client import AsyncClient
from router_svc.demo_model import arithmetic, strings
from router_svc.demo_model.corpus import draw_document
from router_svc.demo_model.network import Network, Shape, restore
from router_svc.demo_model.path import checkpoint_path
from router_svc.demo_model.task import Task

AT_ONCE = 32
_Draw = Callable[[Random], Task]
SUITES: dict[str, _Draw] = {
    "addition of 2 digits": lambda rng: arithmetic.draw_held_out(rng, "addition", 2),
    "addition of 3 digits": lambda rng: arithmetic.draw_held_out(rng, "addition", 3),
    "subtraction of 3 digits": lambda rng: arithmetic.draw_held_out(rng, "subtraction", 3),
    "reverse a word": lambda rng: strings.draw_held_out(rng, "reverse"),
    "sort a word's letters": lambda rng: strings.draw_held_out(rng, "sort"),
    "count a letter": lambda rng: strings.draw_held_out(rng, "count"),
}


async def accuracy(client: AsyncClient, tasks: list[Task], prefix: str) -> float:
    """Share of tasks whose answer is exactly right, asked with `prefix` in front."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def ask(task: Task) -> bool:
        async with slots:
            (result,) = await client.chat(prefix + task.question, temperature=0.0, max_tokens=600)
            return result.content.strip() == task.answer

    right = await asyncio.gather(*map(ask, tasks))
    return sum(right) / len(right)


async def measure(target: str, count: int, seed: int) -> dict[str, dict[str, float]]:
    """Accuracy per suite and mode, `count` held-out tasks each."""
    found: dict[str, dict[str, float]] = {}
    async with AsyncClient(target) as client:
        for name, draw in SUITES.items():
            rng = Random(f"{seed}/{name}")
            tasks = [draw(rng) for _ in range(count)]
            found[name] = {mode: await accuracy(client, tasks, f"/{mode} ") for mode in ("think", "no_think")}
            print(f"{name}: {found[name]}", flush=True)
    return found


@torch.inference_mode()
def expert_shares(folder: Path, documents: int, seed: int) -> dict[str, torch.Tensor]:
    """Per domain, [L, E]: which share of its routed tokens each expert gets."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    network = Network(Shape(vocab=tokenizer.get_vocab_size()))
    restore(network, load_file(folder / "model.safetensors"))
    counts: dict[str, torch.Tensor] = {}
    rng = Random(seed)
    for _ in range(documents):
        document = draw_document(rng)
        ids = torch.tensor([tokenizer.encode(document.prompt + document.target, add_special_tokens=False).ids])
        length = ids.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        _, _, chosen = network(ids, torch.arange(length)[None], mask)
        layers = torch.stack([torch.bincount(layer.flatten(), minlength=network.shape.experts) for layer in chosen])
        counts[document.domain] = counts.get(document.domain, 0) + layers
    return {domain: layers / layers.sum(dim=1, keepdim=True) for domain, layers in counts.items()}


def separation(shares: dict[str, torch.Tensor]) -> dict[str, float]:
    """Total variation between the experts of each two domains, mean of layers: 0 alike, 1 disjoint."""
    return {
        f"{a} | {b}": round(float((shares[a] - shares[b]).abs().sum(dim=1).mean() / 2), 3)
        for a, b in itertools.combinations(sorted(shares), 2)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", default="127.0.0.1:50051")
    parser.add_argument("--count", type=int, default=500, help="held-out tasks per suite and mode")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"count": arguments.count, "seed": arguments.seed}
    found["accuracy"] = asyncio.run(measure(arguments.target, arguments.count, arguments.seed))
    found["separation"] = separation(expert_shares(checkpoint_path(), 600, arguments.seed))
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
