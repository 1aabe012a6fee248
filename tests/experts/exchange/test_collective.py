"""Dispatch and combine over real gloo groups and links against the plain statement, in every topology and mode."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from experts.epoch.agreement import StepWish
from experts.epoch.membership import Member
from experts.errors import RankLost
from experts.exchange.base import Exchange
from experts.exchange.block import BlockForm
from experts.exchange.sizes import bucket, pads
from experts.exchange.stepped import SteppedExchange
from experts.exchange.wire import Route
from experts.placement import Placement
from experts.slots.ffn import grouped_swiglu, swiglu_reference
from tests.experts.exchange.groups import membership, random_inputs, run_members
from tests.patience import PATIENCE

EXPERTS, WIDTH, LAYERS = 12, 6, 2
KINDS = ("gloo", "links")
TOPOLOGIES = {
    "1+2": (1, 2, False),
    "2+2": (2, 2, False),
    "1+3": (1, 3, False),
    "both2": (2, 0, True),
    "both3": (3, 0, True),
    "2+4": (2, 4, False),  # headers go through a leader from the second step on
}


def weights_of_experts(form: BlockForm) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    w13 = torch.randn(EXPERTS, 2 * WIDTH, form.hidden, generator=generator).to(form.dtype)
    return w13, torch.randn(EXPERTS, form.hidden, WIDTH, generator=generator).to(form.dtype)


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "together"])
@pytest.mark.parametrize("redundant", [0, 5], ids=["single", "replicas"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_sums_are_the_references_and_the_same_over_gloo_and_links(topology: str, redundant: int, alone: bool) -> None:
    attention, experts, colocate = TOPOLOGIES[topology]
    members = membership(attention, experts, colocate)
    ranks = experts or attention
    placement = Placement.first(LAYERS, EXPERTS, ranks, -(-(EXPERTS + redundant) // ranks))
    form = BlockForm(hidden=10, top_k=3, dtype=torch.bfloat16 if topology == "1+3" else torch.float32)
    w13, w2 = weights_of_experts(form)
    tokens_per_step = [5, 0, 1, 33]

    def body(exchange: Exchange, seat: Member) -> tuple[list[torch.Tensor], int]:
        sums = []
        held = placement.local(seat.rank) if seat.holds_experts else None
        for step, count in enumerate(tokens_per_step):
            # Sources differ, and one of several sometimes has nothing.
            own = (
                count
                if seat.runs_attention and not (step == 0 and seat.rank == members.members[-1].rank and attention > 1)
                else 0
            )
            header = exchange.open_step(StepWish(decode=own))
            for layer in range(LAYERS):
                x, ids, weights = random_inputs(own, form, EXPERTS, seed=100 * step + 10 * layer + seat.rank)
                handle = exchange.dispatch(layer, x, Route(ids, weights))
                batch = handle.wait()
                y = torch.zeros(batch.x.shape, dtype=torch.float32)
                if held is not None:
                    index = torch.from_numpy(np.maximum(held[layer], 0))
                    y = grouped_swiglu(batch.x, batch.slots, batch.weights, w13[index], w2[index])
                    assert (batch.slots >= 0).any(dim=1).all(), "a row without an expert here must not travel"
                got = handle.combine(y).wait()
                right = swiglu_reference(x, ids, weights, w13, w2)
                narrow = form.dtype == torch.bfloat16
                assert torch.allclose(got, right, atol=0.5 if narrow else 1e-4, rtol=0.1 if narrow else 1e-5)
                sums.append(got)
            assert header.busy == any(header.tokens)
        return sums, exchange.counters.collectives

    gloo = run_members(members, placement, form, body, alone=alone)
    assert {collectives for _, collectives in gloo} == {len(tokens_per_step) * LAYERS * (2 if alone else 3)}
    links = run_members(members, placement, form, body, alone=alone, kind="links")
    for (sums, _), (others, _) in zip(gloo, links, strict=True):
        assert all(map(torch.equal, sums, others))


@pytest.mark.parametrize("kind", KINDS)
def test_prefill_is_shared_by_one_budget(kind: str) -> None:
    members = membership(2, 1)
    placement = Placement.first(1, EXPERTS, 1, EXPERTS)

    def body(exchange: Exchange, seat: Member) -> tuple[int, ...]:
        wish = StepWish(decode=4, prefill=100) if seat.runs_attention else StepWish()
        return exchange.open_step(wish).prefill

    headers = run_members(members, placement, BlockForm(4, 2, torch.float32), body, budget=58, kind=kind)
    assert set(headers) == {(0, 25, 25)}


def test_padding_rule_is_about_waste() -> None:
    assert pads((1, 0, 0), 2, 8, 10_000)
    assert pads((512, 0, 0), 2, 8, 600)
    assert not pads((512, 0), 32, 8, 8192)
    assert [bucket(n) for n in (0, 1, 8, 9, 64, 65)] == [0, 1, 8, 16, 64, 72]


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_that_drops_releases_the_others(kind: str) -> None:
    members = membership(1, 3)
    placement = Placement.first(1, EXPERTS, 3, 4)

    def body(exchange: Exchange, seat: Member) -> bool:
        exchange.open_step(StepWish())
        if seat.rank == 1:
            time.sleep(0.2)
            exchange.close()
            return True
        with pytest.raises(RankLost):
            exchange.open_step(StepWish())
        exchange.close()
        return True

    # A release by the group's own time limit would come too late to be seen here.
    assert all(run_members(members, placement, BlockForm(4, 2, torch.float32), body, timeout=10 * PATIENCE, kind=kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_of_another_step_is_refused(kind: str) -> None:
    members = membership(1, 1)
    placement = Placement.first(1, EXPERTS, 1, EXPERTS)

    def body(exchange: Exchange, seat: Member) -> str:
        assert isinstance(exchange, SteppedExchange)
        exchange._header = replace(exchange._header, step=seat.rank - 1)
        with pytest.raises(RankLost) as caught:
            exchange.open_step(StepWish())
        return str(caught.value)

    told = run_members(members, placement, BlockForm(4, 2, torch.float32), body, kind=kind)
    assert "rank 1 (attention) is at epoch 0, step 1" in told[0]
