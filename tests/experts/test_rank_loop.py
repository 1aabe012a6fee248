"""The expert rank's loop beside a member that drives steps, over a real gloo group."""

import threading
import time
from collections.abc import Callable

import numpy as np
import torch

from experts.epoch.agreement import StepWish
from experts.epoch.membership import Member
from experts.exchange.block import BlockForm
from experts.exchange.collective import CollectiveExchange
from experts.exchange.control import Control
from experts.exchange.wire import Route
from experts.layers import ExpertLayers
from experts.placement import Placement
from experts.slots.ffn import swiglu_reference
from experts.slots.slots import ExpertSlots
from experts.worker.rank_loop import ExpertRankLoop
from tests.experts.exchange.groups import membership, random_inputs, run_members
from tests.experts.small_experts import SPEC, all_weights
from tests.patience import PATIENCE

FORM = BlockForm(SPEC.hidden, SPEC.top_k, torch.float32)
PLACEMENT = Placement.first(2, SPEC.experts, 2, 5)


def filled_slots(rank: int) -> ExpertSlots:
    slots = ExpertSlots(SPEC, PLACEMENT.slots_per_rank, torch.float32)
    w13, w2 = all_weights()
    held = np.maximum(PLACEMENT.local(rank), 0)
    for layer in range(2):
        for slot, expert in enumerate(held[layer].tolist()):
            slots.w13[layer][slot].copy_(w13[expert])
            slots.w2[layer][slot].copy_(w2[expert])
    return slots


def run_cluster(
    drive: Callable[[CollectiveExchange, ExpertLayers, list[Control]], None],
) -> tuple[list[str], list[int]]:
    """1 + 2: why loops were lost, and the tokens each expert rank computed."""
    members = membership(1, 2)
    controls: list[Control] = []
    all_there = threading.Barrier(members.size)
    lost: list[str] = []

    def body(exchange: CollectiveExchange, seat: Member) -> int:
        controls.append(exchange.control)
        all_there.wait(PATIENCE)
        if seat.role == "attention":
            drive(exchange, ExpertLayers(SPEC, exchange, None, torch.float32, "cpu"), controls)
            return 0
        layers = ExpertLayers(SPEC, exchange, filled_slots(seat.rank), torch.float32, "cpu")
        loop = ExpertRankLoop(layers, exchange)
        loop.run()
        lost.extend(filter(None, [loop.lost]))
        return int(layers.loads.snapshot().sum())

    return lost, run_members(members, PLACEMENT, FORM, body)


def ring(controls: list[Control], step: int) -> None:
    for control in controls:
        control.ring((0, step))


def test_computes_sleeps_and_ends_with_the_group() -> None:
    w13, w2 = all_weights()

    def drive(exchange: CollectiveExchange, layers: ExpertLayers, controls: list[Control]) -> None:
        ring(controls, 0)
        for step in range(2):
            exchange.open_step(StepWish(decode=6))
            for layer in range(2):
                x, ids, weights = random_inputs(6, FORM, SPEC.experts, seed=10 * step + layer)
                got = layers(layer, x, Route(ids, weights))
                assert torch.allclose(got, swiglu_reference(x, ids, weights, w13, w2), atol=1e-4)
        assert not exchange.open_step(StepWish()).busy
        before = time.process_time()
        time.sleep(0.4)
        assert time.process_time() - before < 0.15, "idle ranks cost processor time"
        ring(controls, 3)
        exchange.open_step(StepWish(stop=True))

    lost, counted = run_cluster(drive)
    assert lost == []
    assert sum(counted) == 2 * 2 * 6 * SPEC.top_k


def test_a_lost_member_is_told_once_and_ends_the_loop() -> None:
    gone = threading.Event()

    def drive(exchange: CollectiveExchange, layers: ExpertLayers, controls: list[Control]) -> None:
        ring(controls, 0)
        exchange.open_step(StepWish(decode=1))
        time.sleep(0.1)  # the expert ranks wait in dispatch
        exchange.close()
        gone.set()

    lost, _ = run_cluster(drive)
    assert gone.is_set()
    assert len(lost) == 2
    assert all("epoch 0, step" in reason for reason in lost)
