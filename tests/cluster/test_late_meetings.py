"""Two ranks with experts, without a cell: a group that comes together after it was given up is entered by nobody."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.control.orders import Orders
from experts.epoch.membership import EpochRecord, Membership
from experts.errors import RankLost
from experts.exchange.group import open_store
from experts.exchange.split import SplitPolicy
from experts.worker.worker import Worker
from tests import checkpoints
from tests.patience import PATIENCE, wait_until
from tests.topologies import plan_for


@pytest.fixture(scope="module")
def folder() -> Path:
    return checkpoints.shared("hunyuan_v1_moe")


@pytest.mark.parametrize("exchange", ["links", "gloo"])
def test_a_group_that_was_given_up_is_not_entered(folder: Path, exchange: str) -> None:
    plan = plan_for(folder, "1+2", num_redundant_experts=16, exchange=exchange)
    orders, policy = Orders(plan), SplitPolicy()
    seats = tuple(seat for seat in plan.seats if seat.role == "expert")
    store = open_store("127.0.0.1")
    workers = [asyncio.run(orders.of(seat, "s", plan.placement, policy).load(lambda *_: None)) for seat in seats]
    pairs = zip(seats, workers, strict=True)
    seats = tuple(replace(seat, exchange_port=worker.exchange_port) for seat, worker in pairs)
    broken: list[str] = []
    threads = ThreadPoolExecutor(4)

    def record(number: int) -> EpochRecord:
        return EpochRecord(Membership(number, seats, plan.placement.version), "127.0.0.1", store.port, 30.0)

    def recover(worker: Worker, number: int) -> None:
        placement = plan.placement.without((), 10 + number)
        worker.recover(record(number), plan.placement.version, placement, policy)

    try:
        list(threads.map(lambda w: w.join(record(1), w.bell.ring, lambda _: None, broken.append), workers))
        assert [worker.suspend(1, PATIENCE).epoch for worker in workers] == [1, 1]
        first = threads.submit(recover, workers[0], 2)  # waits for the other one
        time.sleep(0.2)
        workers[0].suspend(2, PATIENCE)
        other = threads.submit(recover, workers[1], 2)
        with pytest.raises(RankLost, match="given up while its group was built"):
            first.result(PATIENCE)
        other.exception(PATIENCE)  # it entered, and breaks, or did not: the first one left
        assert workers[0].epoch == 1
        assert workers[1].suspend(2, PATIENCE).epoch in (1, 2)
        list(threads.map(recover, workers, [3, 3]))
        for worker in workers:
            worker.bell.ring((3, 5))
        wait_until(lambda: all(w.joined and w.joined.exchange.counters.steps > 5 for w in workers), "steps run again")
        assert [worker.epoch for worker in workers] == [3, 3]
    finally:
        for worker in workers:
            worker.leave("over")
            worker.end()
            worker.close()
        store.close()
        threads.shutdown()
