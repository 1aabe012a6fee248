"""The pace of simulated experts."""

import torch

from cluster.simulate.pace import Pace


def test_time_per_token_and_slot_with_a_floor_for_slots_in_use() -> None:
    slots = torch.tensor([[0, 2], [0, -1], [0, 2]], dtype=torch.int32)
    assert Pace(0.5).of(slots) == 2.5
    assert Pace(1.0, floor=4).of(slots) == 8.0, "two slots in use, each at least 4 tokens"
    assert Pace(1.0, floor=4).of(torch.empty((0, 2), dtype=torch.int32)) == 0.0
