"""A dump names the rank that the others wait for: real exchanges between threads, one of which stands still."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from experts.dump import StepMoment
from experts.worker.worker import Worker
from router_svc.request import Cancel, EngineRequest
from tests import checkpoints
from tests.engines import sampling
from tests.patience import PATIENCE, wait_until
from tests.topologies import running


def moment(worker: Worker) -> StepMoment:
    found = worker.moment()
    assert found is not None
    return found


@contextmanager
def standing_before(owner: object, name: str) -> Iterator[threading.Event]:
    """Whoever calls this method stands still until the end of the block; the event says that someone does."""
    stands, go_on = threading.Event(), threading.Event()
    method = getattr(owner, name)

    def stands_still(*arguments: Any) -> Any:
        stands.set()
        go_on.wait(PATIENCE)
        return method(*arguments)

    setattr(owner, name, stands_still)
    try:
        yield stands
    finally:
        setattr(owner, name, method)
        go_on.set()


@pytest.mark.parametrize(
    ("exchange", "stops"), [("links", ("layer", "combine")), ("gloo", ("dispatch", "dispatch"))], ids=["links", "gloo"]
)
def test_the_rank_that_stands_still_is_the_one_waited_for(
    tmp_path: Path, exchange: str, stops: tuple[str, str]
) -> None:
    """stops: a method of its exchange, and the phase of who waits for it then."""
    with running(checkpoints.make("qwen2_moe", tmp_path), "1+2", exchange=exchange) as cluster:
        slow, other, attention = cluster.workers
        assert attention.order.seat.rank == 2
        assert slow.held is not None
        assert slow.joined is not None
        cluster.complete([EngineRequest("first", (5, 6, 7), sampling(4))])
        wait_until(lambda: moment(attention).phase == "", "idle ranks wait for nobody")
        for owner, method, phase in (
            (slow.held.slots, "forward", "combine"),
            (slow.joined.exchange, *stops),
        ):
            name = f"{method} {phase}"
            with standing_before(owner, method) as stands:
                cluster.engines[0].post(EngineRequest(name, (5, 6, 7), sampling(900)))
                assert stands.wait(PATIENCE)
                waits = lambda phase=phase: moment(attention).phase == phase and moment(attention).peers  # noqa: E731
                wait_until(waits, f"attention waits in its {phase}")
                found = moment(attention)
                assert "rank 0 (expert)" in found.peers
                assert found.epoch == 1
                assert found.step >= 4
                assert found.layer >= 0
                assert (moment(slow).step, moment(slow).phase) == (found.step, ""), "it does not stand in the exchange"
                wait_until(lambda: moment(other).peers == ("rank 2 (attention)",), "rank 1 waits for attention")
                cluster.engines[0].post(Cancel(name))
