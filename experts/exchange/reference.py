"""Dispatch and combine stated plainly, token by token: what every transport must equal. For tests; knows no group."""

from collections.abc import Callable

import torch

from experts.exchange.wire import ExpertBatch, Route

Compute = Callable[[int, ExpertBatch], torch.Tensor]  # expert rank, its batch [N, H] -> sums [N, H] float32


def exchange_layer(
    xs: list[torch.Tensor], routes: list[Route], slots: list[torch.Tensor], slots_per_rank: int, compute: Compute
) -> list[torch.Tensor]:
    """[T, H] float32 for each source.

    xs: per source [T, H]
    slots: per source [T, K] slot over all ranks, -1 = none

    Each expert rank computes one batch: the rows of source 0, then 1 and so on, each source's in token order.
    """
    sums = [torch.zeros(x.shape, dtype=torch.float32) for x in xs]
    ranks = max((int(chosen.max()) // slots_per_rank + 1 for chosen in slots if chosen.numel()), default=0)
    for rank in range(ranks):
        origins: list[tuple[int, int]] = []
        rows: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        for source, (x, route) in enumerate(zip(xs, routes, strict=True)):
            for token in range(x.shape[0]):
                local = slots[source][token] - rank * slots_per_rank
                local = torch.where((local >= 0) & (local < slots_per_rank), local, -1).to(torch.int32)
                if (local >= 0).any():
                    origins.append((source, token))
                    rows.append((x[token], local, route.weights[token]))
        if rows:
            x, local, weights = (torch.stack(column) for column in zip(*rows, strict=True))
            y = compute(rank, ExpertBatch(x, local, weights))
            for row, (source, token) in enumerate(origins):
                sums[source][token] += y[row]
    return sums
