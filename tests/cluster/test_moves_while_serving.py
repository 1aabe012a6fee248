"""Experts move between ranks while requests run: answers stay what they were, whatever fails on the way."""

import threading
from pathlib import Path

import numpy as np
import pytest

from cluster.balance.rounds import rounds
from experts.placement import Placement
from experts.slots.digest import digest_of
from experts.slots.migrate import Move
from experts.slots.weights_server import PeerSlot
from experts.worker.worker import Worker
from router_svc.request import EngineRequest
from tests import checkpoints
from tests.engines import sampling
from tests.patience import PATIENCE, wait_until
from tests.topologies import ThreadCluster, running


@pytest.fixture(scope="module")
def hunyuan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("hunyuan_v1_moe", tmp_path_factory.mktemp("moves") / "model")


def prompts(count: int) -> list[EngineRequest]:
    rng = np.random.default_rng(7)
    ids = [tuple(rng.integers(1, checkpoints.VOCABULARY, 5 + 9 * i).tolist()) for i in range(count)]
    return [EngineRequest(f"r{i}", prompt, sampling(24)) for i, prompt in enumerate(ids)]


def holders(cluster: ThreadCluster) -> dict[int, Worker]:
    return {worker.order.seat.rank: worker for worker in cluster.workers if worker.held is not None}


def moves_to(cluster: ThreadCluster, before: Placement, after: Placement, rank: int) -> list[Move]:
    """What a rank must fetch, from the first other rank that has it."""
    out = []
    for change in before.diff(after):
        if change.slot // before.slots_per_rank != rank or change.new < 0:
            continue
        copies = np.flatnonzero(before.slot_expert[change.layer] == change.new)
        ports = {r: worker.weights_port for r, worker in holders(cluster).items()}
        sources = tuple(
            PeerSlot("127.0.0.1", ports[int(c) // before.slots_per_rank], int(c) % before.slots_per_rank)
            for c in copies
        )
        out.append(Move(change.layer, change.slot % before.slots_per_rank, change.new, sources))
    return out


def go_to(cluster: ThreadCluster, before: Placement, after: Placement) -> None:
    """One round, as the balancer takes it: stage everywhere, then offer everywhere, then wait until it is in use."""
    for rank, seat in holders(cluster).items():
        staged = seat.stage(moves_to(cluster, before, after, rank), 1e9)
        assert not [s.error for s in staged if s.error]
    for worker in cluster.workers:
        worker.offer(after)

    def in_use() -> bool:
        cluster.engines[0].nudge()  # a step under way may have had its header before the offers
        return all(worker.version >= after.version for worker in cluster.workers)

    wait_until(in_use, "the new placement in use")


def shuffled(placement: Placement, seed: int) -> Placement:
    """The same copies in other slots, all layers: the most that can move."""
    rng = np.random.default_rng(seed)
    table = np.stack([row[rng.permutation(len(row))] for row in placement.slot_expert])
    return Placement(placement.version, placement.ranks, placement.slots_per_rank, table)


@pytest.mark.parametrize("topology", ["1+2", "2+2", "colocated2"])
def test_tokens_stay_the_same_while_experts_move(topology: str, hunyuan_folder: Path) -> None:
    with running(hunyuan_folder, topology, num_redundant_experts=4) as cluster:
        quiet = cluster.complete(prompts(6))
        current, stop, versions = cluster.plan.placement, threading.Event(), []

        def mover() -> None:
            nonlocal current
            seed = 0
            while not stop.is_set():
                for placement in rounds(current, shuffled(current, seed), 3):
                    go_to(cluster, current, placement)
                    current = placement
                    versions.append(current.version)
                seed += 1

        thread = threading.Thread(target=mover)
        thread.start()
        try:
            while len(versions) < 3 and thread.is_alive():
                assert cluster.complete(prompts(6)) == quiet
        finally:
            stop.set()
            thread.join(PATIENCE)
        assert not thread.is_alive()
        assert len(versions) >= 3, "the mover ended early"
        assert cluster.complete(prompts(6)) == quiet
        assert all(seat.report().switch_seconds > 0 for seat in holders(cluster).values())


def test_a_failed_fetch_changes_nothing_and_the_checkpoint_helps(hunyuan_folder: Path) -> None:
    with running(hunyuan_folder, "1+2", num_redundant_experts=4) as cluster:
        quiet = cluster.complete(prompts(2))
        before = cluster.plan.placement
        seat = holders(cluster)[0]
        assert seat.held is not None
        expert = int(before.local(1)[0, 0])
        digests = digest_of(seat.held.slots.parts(0, 0))
        wrong = PeerSlot("127.0.0.1", holders(cluster)[1].weights_port, 5)
        gone = PeerSlot("127.0.0.1", 1, 0)
        (staged,) = seat.stage([Move(0, 0, expert, (wrong, gone))], 1e9)
        assert staged.origin == "checkpoint"
        assert not staged.error
        right = holders(cluster)[1].held
        assert right is not None
        assert staged.digest == digest_of(right.slots.parts(0, 0)), "the checkpoint's copy is the peer's"
        seat.drop_staged()
        assert digest_of(seat.held.slots.parts(0, 0)) == digests
        assert cluster.complete(prompts(2)) == quiet


def test_a_version_that_one_rank_never_offered_is_passed_over(hunyuan_folder: Path) -> None:
    """What was staged for it must not reach a slot that the next version leaves as it was."""
    with running(hunyuan_folder, "1+2", num_redundant_experts=4) as cluster:
        quiet = cluster.complete(prompts(4))
        before = cluster.plan.placement
        abandoned = shuffled(before, 1)
        abandoned = Placement(1, before.ranks, before.slots_per_rank, abandoned.slot_expert)
        first = holders(cluster)[0]
        first.stage(moves_to(cluster, before, abandoned, 0), 1e9)
        first.offer(abandoned)
        assert cluster.complete(prompts(4)) == quiet
        first.drop_staged()
        table = before.slot_expert.copy()
        table[0, [0, before.slots_per_rank]] = table[0, [before.slots_per_rank, 0]]
        go_to(cluster, before, Placement(2, before.ranks, before.slots_per_rank, table))
        assert cluster.complete(prompts(4)) == quiet
