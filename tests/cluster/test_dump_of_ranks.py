"""A dump names the rank that the others wait for: real exchanges between threads, one of which stands still."""

import threading
from pathlib import Path

import torch

from experts.dump import StepMoment
from experts.exchange.wire import ExpertBatch
from experts.rank import RankSeat
from router_svc.request import Cancel, EngineRequest
from tests import checkpoints
from tests.engines import sampling
from tests.patience import PATIENCE, wait_until
from tests.topologies import running


def moment(seat: RankSeat) -> StepMoment:
    found = seat.moment()
    assert found is not None
    return found


def test_the_rank_that_stands_still_is_the_one_waited_for(tmp_path: Path) -> None:
    with running(checkpoints.make("qwen2_moe", tmp_path), "1+2") as cluster:
        slow, other, attention = cluster.seats
        assert attention.order.rank == 2
        cluster.complete([EngineRequest("first", (5, 6, 7), sampling(4))])
        wait_until(lambda: moment(attention).phase == "", "idle ranks wait for nobody")
        stands, go_on = threading.Event(), threading.Event()
        assert slow.slots is not None
        forward = slow.slots.forward

        def stands_still(layer: int, batch: ExpertBatch) -> torch.Tensor:
            stands.set()
            go_on.wait(PATIENCE)
            return forward(layer, batch)

        slow.slots.forward = stands_still  # type: ignore[method-assign]
        try:
            cluster.engines[0].post(EngineRequest("r", (5, 6, 7), sampling(900)))
            assert stands.wait(PATIENCE)
            wait_until(lambda: moment(attention).phase == "combine", "attention waits for the experts' sums")
            found = moment(attention)
            assert "rank 0 (expert)" in found.peers
            assert (found.epoch, found.layer) == (1, 0)
            assert found.step >= 4
            at = moment(slow)
            assert (at.step, at.layer, at.phase) == (found.step, 0, ""), "it is not the exchange that it stands in"
            wait_until(lambda: moment(other).phase == "dispatch", "rank 1 waits for the next layer's tokens")
            assert moment(other).peers == ("rank 2 (attention)",)
        finally:
            slow.slots.forward = forward  # type: ignore[method-assign]
            go_on.set()
            cluster.engines[0].post(Cancel("r"))
