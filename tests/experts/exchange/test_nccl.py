"""The same exchange over NCCL, on machines that have it: ranks of one machine, each its own GPU."""

import pytest
import torch
from torch import distributed

from experts.epoch.agreement import StepWish
from experts.epoch.membership import Member
from experts.errors import UserError
from experts.exchange.block import BlockForm
from experts.exchange.collective import CollectiveExchange
from experts.exchange.nccl import NcclGroup
from experts.exchange.wire import Route
from experts.placement import Placement
from experts.slots.ffn import swiglu_reference
from tests.experts.exchange.groups import membership, random_inputs, run_members

GPUS = torch.cuda.device_count() if torch.cuda.is_available() and distributed.is_nccl_available() else 0


@pytest.mark.skipif(GPUS > 0, reason="has a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(UserError, match="no NCCL or no CUDA device"):
        NcclGroup(distributed.HashStore(), 0, 1, "cuda:0", 1.0)


@pytest.mark.gpu
@pytest.mark.skipif(GPUS < 2, reason=f"needs two CUDA devices, found {GPUS}")
def test_sums_over_nccl_are_the_references() -> None:
    experts, width = 8, 16
    form = BlockForm(hidden=32, top_k=2, dtype=torch.float32)
    placement = Placement.first(1, experts, 2, 5)
    generator = torch.Generator().manual_seed(9)
    w13 = torch.randn(experts, 2 * width, form.hidden, generator=generator)
    w2 = torch.randn(experts, form.hidden, width, generator=generator)

    def body(exchange: CollectiveExchange, seat: Member) -> None:
        device = f"cuda:{seat.rank}"
        held = torch.from_numpy(placement.local(seat.rank)[0].copy())
        for step in range(3):
            own = 5 * seat.rank + step
            exchange.open_step(StepWish(decode=own))
            x, ids, weights = (t.to(device) for t in random_inputs(own, form, experts, seed=step))
            handle = exchange.dispatch(0, x, Route(ids, weights))
            batch = handle.wait()
            y = swiglu_reference(batch.x, batch.slots, batch.weights, w13[held].to(device), w2[held].to(device))
            got = handle.combine(y).wait()
            want = swiglu_reference(x.cpu(), ids.cpu(), weights.cpu(), w13, w2)
            assert torch.allclose(got.cpu(), want, atol=1e-3)

    run_members(membership(2, 0, colocate=True), placement, form, body, device="cuda")
