"""Groups of real processes: a killed or stopped peer, epochs that don't meet, a peer that never comes."""

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection

import pytest
import torch

from experts.errors import RankLost
from experts.exchange.block import BlockForm
from experts.exchange.collective import CollectiveExchange
from experts.exchange.group import build_group, connect_store, open_store
from experts.exchange.wire import Route, StepWish
from experts.placement import Placement
from tests.experts.exchange.groups import membership, random_inputs

FORM = BlockForm(hidden=8, top_k=2, dtype=torch.float32)
MEMBERS = membership(1, 2)


def make_exchange(port: int, rank: int, timeout: float = 30.0, epoch: int = 0) -> CollectiveExchange:
    members = membership(1, 2, epoch=epoch)
    group = build_group(connect_store("127.0.0.1", port, 10), epoch, rank, 3, "cpu", "127.0.0.1", timeout)
    return CollectiveExchange(group, members, rank, Placement.first(1, 4, 2, 2), FORM, 64)


def member_main(port: int, rank: int, told: Connection) -> None:
    """Steps until the group breaks; tells its process id, that it runs, then why it ended and when."""
    torch.set_num_threads(1)
    exchange = make_exchange(port, rank)
    told.send(os.getpid())
    try:
        for step in range(10**6):
            own = 3 if rank == 2 else 0
            exchange.open_step(StepWish(decode=own, prefill=int(rank == 2)))
            x, ids, weights = random_inputs(own, FORM, 4, seed=step)
            handle = exchange.dispatch(0, x, Route(ids, weights))
            exchange.combine(handle, torch.zeros(handle.wait().x.shape)).wait()
            if step == 20:
                told.send("running")
    except RankLost as lost:
        exchange.close()
        told.send((time.monotonic(), str(lost)))


@pytest.mark.parametrize("victim", [0, 2], ids=["expert", "attention"])
def test_a_killed_peer_is_noticed_by_all_others_at_once(victim: int) -> None:
    store = open_store("127.0.0.1")
    spawn = multiprocessing.get_context("spawn")
    pipes = [spawn.Pipe(duplex=False) for _ in range(3)]
    processes = [spawn.Process(target=member_main, args=(store.port, r, pipes[r][1]), daemon=True) for r in range(3)]
    for process in processes:
        process.start()
    try:
        pids = [receive(reader) for reader, _ in pipes]
        assert [receive(reader) for reader, _ in pipes] == ["running"] * 3
        os.kill(pids[victim], signal.SIGKILL)
        killed = time.monotonic()
        for rank in {0, 1, 2} - {victim}:
            when, why = receive(pipes[rank][0])
            assert when - killed < 2, why
            assert why.startswith("epoch 0, step")
    finally:
        for process in processes:
            process.kill()
            process.join(10)


def receive(reader: Connection) -> object:
    assert reader.poll(60), "nothing was told"
    return reader.recv()


def test_close_from_another_thread_ends_a_blocked_call_and_releases_peers() -> None:
    """Rank 2 never takes part: the others would wait for it until the timeout."""
    store = open_store("127.0.0.1")
    exchanges: dict[int, CollectiveExchange] = {}
    builders = [
        threading.Thread(target=lambda r=r: exchanges.update({r: make_exchange(store.port, r)})) for r in range(3)
    ]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(20)
    ended: dict[int, str] = {}

    def blocked(rank: int) -> None:
        try:
            exchanges[rank].open_step(StepWish())
        except RankLost as lost:
            ended[rank] = str(lost)

    threads = [threading.Thread(target=blocked, args=(rank,), daemon=True) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    assert all(thread.is_alive() for thread in threads)
    started = time.monotonic()
    exchanges[0].close()
    assert time.monotonic() - started < 2
    for thread in threads:
        thread.join(5)
    assert sorted(ended) == [0, 1]
    assert "the exchange was closed" in ended[0]
    for rank in (1, 2):
        exchanges[rank].close()
    with pytest.raises(RankLost, match="closed"):
        exchanges[2].open_step(StepWish())


def test_members_of_unlike_epochs_do_not_meet() -> None:
    store = open_store("127.0.0.1")
    errors: list[RankLost] = []

    def build(rank: int, epoch: int) -> None:
        client = connect_store("127.0.0.1", store.port, 10)
        try:
            build_group(client, epoch, rank, 2, "cpu", "127.0.0.1", 5.0, deadline=0.5)
        except RankLost as lost:
            errors.append(lost)

    threads = [threading.Thread(target=build, args=(rank, rank), daemon=True) for rank in range(2)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(errors) == 2
    assert {error.epoch for error in errors} == {0, 1}
    assert time.monotonic() - started < 10


def test_a_hung_peer_ends_in_a_timeout() -> None:
    store = open_store("127.0.0.1")
    built: dict[int, CollectiveExchange] = {}
    builders = [
        threading.Thread(target=lambda r=r: built.update({r: make_exchange(store.port, r, 0.5)})) for r in range(3)
    ]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(20)
    with pytest.raises(RankLost, match=r"epoch 0, step 0: .*[Tt]imed out"):
        built[0].open_step(StepWish())
    for exchange in built.values():
        exchange.close()
