"""Counting tokens per slot."""

import torch

from experts.loads import ExpertLoads


def test_counts_pairs_and_skips_none() -> None:
    loads = ExpertLoads(layers=2, slots=3)
    loads.add(1, torch.tensor([[0, 2], [2, -1]], dtype=torch.int32))
    loads.add(1, torch.tensor([[2, 1]], dtype=torch.int32))
    loads.add(0, torch.empty((0, 2), dtype=torch.int32))
    assert loads.snapshot().tolist() == [[0, 0, 0], [1, 1, 3]]


def test_a_snapshot_is_a_copy() -> None:
    loads = ExpertLoads(layers=1, slots=1)
    seen = loads.snapshot()
    loads.add(0, torch.zeros((1, 1), dtype=torch.int32))
    assert seen.tolist() == [[0]]


def test_a_rank_without_slots_counts_nothing() -> None:
    assert ExpertLoads(layers=2, slots=0).snapshot().shape == (2, 0)
