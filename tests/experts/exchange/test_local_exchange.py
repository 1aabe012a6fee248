"""The exchange of one process: same answers, nothing moved."""

import torch

from experts.epoch.agreement import StepWish
from experts.exchange.local import LocalExchange
from experts.exchange.wire import Route
from experts.placement import Placement


def test_slots_hold_the_routed_experts() -> None:
    for spare in (0, 3):
        table = Placement.first(2, 6, 1, 6 + spare).slot_expert[:, ::-1].copy()
        placement = Placement(0, 1, 6 + spare, table)
        exchange = LocalExchange(placement, budget=16)
        ids = torch.tensor([[0, 5], [3, -1]], dtype=torch.int32)
        x, weights = torch.randn(2, 4), torch.rand(2, 2)
        batch = exchange.dispatch(1, x, Route(ids, weights)).wait()
        assert batch.x is x
        assert batch.weights is weights
        assert batch.slots.dtype == torch.int32
        held = torch.from_numpy(table)[1][batch.slots.long()]
        assert torch.equal(torch.where(batch.slots >= 0, held, -1).int(), ids)


def test_header_grants_the_budget_that_decoders_leave() -> None:
    exchange = LocalExchange(Placement.first(1, 2, 1, 2), budget=16)
    header = exchange.open_step(StepWish(decode=4, prefill=100))
    assert (header.step, header.tokens, header.prefill, header.busy) == (0, (16,), (12,), True)
    header = exchange.open_step(StepWish(stop=True))
    assert (header.step, header.busy, header.stop) == (1, False, True)
