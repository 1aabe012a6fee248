"""Random topologies, placements and batches over real gloo against the plain statement: in float32 bit for bit."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experts.epoch.agreement import StepWish
from experts.epoch.membership import Member
from experts.exchange.base import Exchange
from experts.exchange.block import BlockForm
from experts.exchange.reference import exchange_layer
from experts.exchange.split import SplitTable, split
from experts.exchange.wire import ExpertBatch, Route
from experts.placement import Placement
from tests.experts.exchange.groups import membership, random_inputs, run_members

EXPERTS, TOP_K = 9, 3


def compute(rank: int, batch: ExpertBatch) -> torch.Tensor:
    """Any function of row, slot, weight and rank; not one that a wrong slot or weight would survive."""
    scale = torch.where(batch.slots >= 0, (batch.slots + 10 * rank + 1) * batch.weights, 0.0).sum(1, keepdim=True)
    return batch.x.float() * scale


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    topology=st.sampled_from([(1, 1, False), (1, 3, False), (2, 2, False), (3, 1, False), (2, 0, True), (3, 0, True)]),
    tokens=st.lists(st.integers(0, 20), min_size=3, max_size=3),
    spare=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    exact=st.booleans(),
    kind=st.sampled_from(["gloo", "links"]),
    seed=st.integers(0, 1000),
)
def test_equals_the_reference(
    topology: tuple[int, int, bool],
    tokens: list[int],
    spare: int,
    dtype: torch.dtype,
    exact: bool,
    kind: str,
    seed: int,
) -> None:
    attention, experts, colocate = topology
    members = membership(attention, experts, colocate)
    ranks = experts or attention
    placement = Placement.first(1, EXPERTS, ranks, -(-EXPERTS // ranks) + spare)
    form = BlockForm(hidden=7, top_k=TOP_K, dtype=dtype)
    inputs = [random_inputs(n, form, EXPERTS, seed + i) for i, n in enumerate(tokens[:attention])]
    sources = [member.rank for member in members.members if member.runs_attention]

    def body(exchange: Exchange, seat: Member) -> torch.Tensor:
        own = sources.index(seat.rank) if seat.runs_attention else None
        x, ids, weights = inputs[own] if own is not None else random_inputs(0, form, EXPERTS, 0)
        exchange.open_step(StepWish(decode=x.shape[0]))
        handle = exchange.dispatch(0, x, Route(ids, weights))
        batch = handle.wait()
        y = compute(seat.rank, batch)
        return handle.combine(y).wait()

    got = run_members(members, placement, form, body, alone=not exact, kind=kind)
    table = SplitTable.of(placement, 0)
    if exact:
        together = split(table, torch.cat([ids for _, ids, _ in inputs]).numpy())
        slots = list(torch.from_numpy(together).split([ids.shape[0] for _, ids, _ in inputs]))
    else:
        turns = [members.index(rank) for rank in sources]
        slots = [
            torch.from_numpy(split(table, ids.numpy(), turn)) for (_, ids, _), turn in zip(inputs, turns, strict=True)
        ]

    want = exchange_layer(
        [x for x, _, _ in inputs],
        [Route(ids, weights) for _, ids, weights in inputs],
        slots,
        placement.slots_per_rank,
        compute,
    )
    for rank, sums in zip(sources, want, strict=True):
        limit_of_rounding = 2e-2 if dtype == torch.bfloat16 else 0.0  # sums travel in the activations' dtype
        assert torch.allclose(got[members.index(rank)], sums, atol=limit_of_rounding, rtol=limit_of_rounding)
