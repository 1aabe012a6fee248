"""Groups of real processes: a killed or stopped peer, epochs that don't meet, a peer that never comes."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import pytest
import torch

from experts.epoch.agreement import StepWish
from experts.errors import RankLost
from experts.exchange.block import BlockForm
from experts.exchange.collective import CollectiveExchange
from experts.exchange.group import build_group, connect_store, open_store
from experts.exchange.store import StoreServer
from experts.exchange.wire import Route
from experts.placement import Placement
from tests.experts.exchange.groups import guarded, membership, order_of, random_inputs
from tests.patience import PATIENCE

FORM = BlockForm(hidden=8, top_k=2, dtype=torch.float32)
MEMBERS = membership(1, 2)
Built = Callable[[StoreServer, float], dict[int, CollectiveExchange]]


def make_exchange(port: int, rank: int, timeout: float = 10 * PATIENCE, epoch: int = 0) -> CollectiveExchange:
    members = membership(1, 2, epoch=epoch)
    group = build_group(
        connect_store("127.0.0.1", port, PATIENCE), epoch, rank, 3, "cpu", "127.0.0.1", timeout, PATIENCE
    )
    return CollectiveExchange(order_of(rank, Placement.first(1, 4, 2, 2), FORM), guarded(group, members))


@pytest.fixture
def store() -> Iterator[StoreServer]:
    server = open_store("127.0.0.1")
    yield server
    server.close()


@pytest.fixture
def built() -> Iterator[Built]:
    """Makes all members' exchanges with a group's time limit; closed at the end."""
    made: dict[int, CollectiveExchange] = {}

    def build(store: StoreServer, timeout: float) -> dict[int, CollectiveExchange]:
        builders = [
            threading.Thread(target=lambda rank=rank: made.update({rank: make_exchange(store.port, rank, timeout)}))
            for rank in range(MEMBERS.size)
        ]
        for builder in builders:
            builder.start()
        for builder in builders:
            builder.join(PATIENCE)
        return made

    yield build
    for exchange in made.values():
        exchange.close()


def member_main(port: int, rank: int, told: Connection) -> None:
    """Steps until the group breaks; tells its process id, that it runs, then why it ended."""
    torch.set_num_threads(1)
    exchange = make_exchange(port, rank)
    told.send(os.getpid())
    try:
        for step in range(10**6):
            own = 3 if rank == 2 else 0
            exchange.open_step(StepWish(decode=own, prefill=int(rank == 2)))
            x, ids, weights = random_inputs(own, FORM, 4, seed=step)
            handle = exchange.dispatch(0, x, Route(ids, weights))
            handle.combine(torch.zeros(handle.wait().x.shape)).wait()
            if step == 20:
                told.send("running")
    except RankLost as lost:
        exchange.close()
        told.send(str(lost))


@pytest.mark.parametrize("victim", [0, 2], ids=["expert", "attention"])
def test_a_killed_peer_is_noticed_by_all_others_at_once(store: StoreServer, victim: int) -> None:
    spawn = multiprocessing.get_context("spawn")
    pipes = [spawn.Pipe(duplex=False) for _ in range(3)]
    processes = [spawn.Process(target=member_main, args=(store.port, r, pipes[r][1]), daemon=True) for r in range(3)]
    for process in processes:
        process.start()
    try:
        pids = [receive(reader) for reader, _ in pipes]
        assert [receive(reader) for reader, _ in pipes] == ["running"] * 3
        os.kill(pids[victim], signal.SIGKILL)
        for rank in {0, 1, 2} - {victim}:  # long before the group's own time limit
            assert str(receive(pipes[rank][0])).startswith("epoch 0, step")
    finally:
        for process in processes:
            process.kill()
            process.join(PATIENCE)


def receive(reader: Connection) -> object:
    assert reader.poll(2 * PATIENCE), "nothing came"
    return reader.recv()


def test_close_from_another_thread_ends_a_blocked_call_and_releases_peers(store: StoreServer, built: Built) -> None:
    """Rank 2 never takes part: the others would wait for it until the timeout."""
    exchanges = built(store, 10 * PATIENCE)
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
    exchanges[0].close()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(ended) == [0, 1]
    assert "the exchange was closed" in ended[0]
    exchanges[2].close()
    with pytest.raises(RankLost, match="closed"):
        exchanges[2].open_step(StepWish())


def test_members_of_unlike_epochs_do_not_meet(store: StoreServer) -> None:
    errors: list[RankLost] = []

    def build(rank: int, epoch: int) -> None:
        client = connect_store("127.0.0.1", store.port, PATIENCE)
        try:
            build_group(client, epoch, rank, 2, "cpu", "127.0.0.1", 5.0, deadline=0.5)
        except RankLost as lost:
            errors.append(lost)

    threads = [threading.Thread(target=build, args=(rank, rank), daemon=True) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(errors) == 2
    assert {error.epoch for error in errors} == {0, 1}


def test_a_hung_peer_ends_in_a_timeout(store: StoreServer, built: Built) -> None:
    exchanges = built(store, 0.5)
    with pytest.raises(RankLost, match=r"epoch 0, step 0: .*[Tt]imed out"):
        exchanges[0].open_step(StepWish())
