"""Counting tokens per slot, source and step."""

import torch

from experts.epoch.agreement import StepHeader
from experts.exchange.wire import ExpertBatch
from experts.slots.loads import BOTH, DECODE, PREFILL, ExpertLoads


def batch(slots: list[list[int]], rows: tuple[int, ...] = ()) -> ExpertBatch:
    table = torch.tensor(slots, dtype=torch.int32).reshape(len(slots), 2)
    return ExpertBatch(torch.empty(len(slots), 4), table, torch.ones(len(slots), 2), rows)


def header(step: int, tokens: int, prefill: int) -> StepHeader:
    return StepHeader(1, step, 7, (tokens,), (prefill,), False)


def test_counts_pairs_and_skips_none() -> None:
    loads = ExpertLoads(layers=2, slots=3)
    loads.add(1, batch([[0, 2], [2, -1]]))
    loads.add(1, batch([[2, 1]]))
    loads.add(0, batch([]))
    assert loads.snapshot().sum() == 0, "a step counts when it has ended"
    loads.end_step(header(0, 3, 0), 0.1)
    assert loads.snapshot().tolist() == [[0, 0, 0], [1, 1, 3]]


def test_steps_are_told_once_with_their_phase() -> None:
    loads = ExpertLoads(layers=1, slots=2)
    for step, (tokens, prefill) in enumerate([(2, 0), (2, 2), (4, 2)]):
        loads.add(0, batch([[0, 1]]))
        loads.end_step(header(step, tokens, prefill), 0.5)
    steps = loads.drain()
    assert [(s.step, s.version, s.phase, s.seconds) for s in steps] == [
        (0, 7, DECODE, 0.5), (1, 7, PREFILL, 0.5), (2, 7, BOTH, 0.5)
    ]  # fmt: skip
    assert all(s.counts.tolist() == [[[1, 1]]] for s in steps)
    assert loads.drain() == []
    assert loads.snapshot().tolist() == [[3, 3]]


def test_tokens_are_told_apart_by_source() -> None:
    loads = ExpertLoads(layers=2, slots=2, sources=3)
    loads.add(1, batch([[0, 1], [0, -1], [1, -1]], rows=(2, 0, 1)))
    loads.end_step(StepHeader(1, 0, 7, (2, 0, 1), (0, 0, 0), False), 0.0)
    (step,) = loads.drain()
    assert step.counts.tolist() == [[[0, 0], [2, 1]], [[0, 0], [0, 0]], [[0, 0], [0, 1]]]


def test_a_snapshot_is_a_copy() -> None:
    loads = ExpertLoads(layers=1, slots=1)
    seen = loads.snapshot()
    loads.add(0, ExpertBatch(torch.empty(1, 1), torch.zeros((1, 1), dtype=torch.int32), torch.ones(1, 1)))
    loads.end_step(header(0, 1, 0), 0.0)
    assert seen.tolist() == [[0]]


def test_a_rank_without_slots_counts_nothing() -> None:
    loads = ExpertLoads(layers=2, slots=0)
    loads.end_step(header(0, 1, 0), 0.0)
    assert loads.snapshot().shape == (2, 0)
    assert loads.drain() == []


def test_a_group_of_another_size_counts_its_own_members() -> None:
    loads = ExpertLoads(layers=1, slots=2, sources=3)
    loads.add(0, batch([[0, 1]], rows=(0, 0, 1)))
    loads.end_step(StepHeader(1, 4, 7, (0, 0, 1), (0, 0, 0), False), 0.0)
    loads.end_step(StepHeader(2, 0, 7, (0, 1), (0, 0), False), 0.0)  # nothing came here
    loads.add(0, batch([[1, 1]], rows=(0, 1)))
    loads.end_step(StepHeader(2, 1, 7, (0, 1), (0, 0), False), 0.0)
    steps = loads.drain()
    assert [(s.epoch, s.step, s.counts.shape[0]) for s in steps] == [(1, 4, 3), (2, 0, 2), (2, 1, 2)]
    assert steps[2].counts.tolist() == [[[0, 0]], [[0, 2]]]
    assert loads.snapshot().tolist() == [[1, 3]]
