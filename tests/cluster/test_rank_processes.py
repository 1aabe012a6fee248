"""Ranks as processes of their own: transformers' tokens, epochs and experts that change under load, and a death."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from experts.placement import Placement
from experts.slots.migrate import Move
from experts.slots.weights_server import PeerSlot
from router_svc.request import EngineRequest
from tests import checkpoints, rank_processes
from tests.engines import sampling
from tests.patience import PATIENCE, wait_until

COUNT = 24
LENGTHS = (1, 7, 40, 211)
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


def requests(name: str) -> list[EngineRequest]:
    rng = np.random.default_rng(11)
    ids = [tuple(rng.integers(1, checkpoints.VOCABULARY, n).tolist()) for n in LENGTHS]
    return [EngineRequest(f"{name}{i}", prompt, sampling(COUNT)) for i, prompt in enumerate(ids)]


def wanted(folder: Path) -> list[list[int]]:
    tokens = []
    for request in requests(""):
        ids, logits = checkpoints.reference_greedy(folder, list(request.prompt_ids), COUNT)
        assert checkpoints.smallest_gap(logits) >= 1e-3, "pick another seed: a near-tie decides a token"
        tokens.append(ids)
    return tokens


@pytest.fixture(scope="module", params=DEVICES)
def ranks(request: pytest.FixtureRequest) -> Iterator[rank_processes.Ranks]:
    """Three processes with Hunyuan's tiny checkpoint, in epoch 0, for all tests of this file but the deadly one."""
    with rank_processes.running(checkpoints.shared("hunyuan_v1_moe"), "1+2", request.param) as started:
        started.join(0)
        yield started


def test_tokens_are_transformers(ranks: rank_processes.Ranks) -> None:
    right = wanted(ranks.plan.folder)
    assert ranks.complete(requests("a")) == right
    assert ranks.complete(requests("b")) == right  # after an idle pause, and from the prefix cache


def test_epochs_are_prepared_beside_running_steps(ranks: rank_processes.Ranks) -> None:
    """Members get ready at different times, each of them first once, while steps of the epoch before run."""
    right = wanted(ranks.plan.folder)
    for epoch in range(1, 5):
        ranks.post(requests(f"e{epoch}-"))
        record, preparing = ranks.record(epoch, planned=True), []
        for turn in range(len(ranks.ranks)):
            preparing.append(ranks.ranks[(epoch + turn) % len(ranks.ranks)].begin("prepare", record))
            time.sleep(0.03)  # steps go on meanwhile
        for answer in preparing:
            answer.result(PATIENCE)
        assert ranks.collect([request.request_id for request in requests(f"e{epoch}-")]) == right
        ranks.bringers[0].call("nudge")
        wait_until(lambda epoch=epoch: all(rank.call("epoch") == epoch for rank in ranks.ranks), "the epoch is entered")


def test_experts_move_between_processes_under_load(ranks: rank_processes.Ranks) -> None:
    right, before = wanted(ranks.plan.folder), ranks.plan.placement
    table = np.roll(before.slot_expert, before.slots_per_rank, axis=1)  # every expert goes to the other rank
    after = Placement(before.version + 1, before.ranks, before.slots_per_rank, table)
    ranks.post(requests("m"))
    for number, rank in enumerate(ranks.holders):
        peer = ranks.holders[1 - number]
        source = [PeerSlot("127.0.0.1", ranks.ports[peer.seat.rank], slot) for slot in range(before.slots_per_rank)]
        moves = [
            Move(layer, slot, int(expert), (source[slot],))
            for layer, row in enumerate(after.local(rank.seat.rank))
            for slot, expert in enumerate(row)
        ]
        staged = rank.call("stage", moves, 1e9)
        assert not [one.error for one in staged if one.error]
        assert {one.origin for one in staged} == {f"127.0.0.1:{ranks.ports[peer.seat.rank]}"}
    for rank in ranks.ranks:
        rank.call("offer", after)
    assert ranks.collect([request.request_id for request in requests("m")]) == right
    ranks.bringers[0].call("nudge")
    wait_until(lambda: all(rank.call("version") == after.version for rank in ranks.ranks), "the placement is in use")
    assert ranks.complete(requests("n")) == right


@pytest.mark.parametrize("device", DEVICES)
def test_survivors_of_a_killed_rank_live_and_let_go(device: str) -> None:
    """Over NCCL nobody notices a death by itself: the supervisor has the survivors leave, and they must still be able to."""
    with rank_processes.running(checkpoints.shared("mixtral"), "1+2", device) as ranks:
        ranks.join(0)
        ranks.post([EngineRequest("long", (5, 6, 7), sampling(900))])
        wait_until(lambda: ranks.bringers[0].call("report").engine.generated_tokens > 20, "it runs")
        dead, *survivors = ranks.ranks
        dead.kill()
        time.sleep(1.0)  # torch's watchdog looks every 0.1 s: what it does about the error has begun
        started = time.monotonic()
        for rank in survivors:
            rank.call("leave", "rank 0 is gone")
        for rank in survivors:
            assert rank.ended.result(PATIENCE)
        print(f"{device}: survivors let go within {time.monotonic() - started:.2f} s")
        assert all(rank.call("report").pid == rank.process.pid for rank in survivors), "a survivor died"


@pytest.mark.parametrize("device", DEVICES)
def test_survivors_know_of_a_death_by_themselves(device: str) -> None:
    """Nobody has them leave: the links of their machine say so, over NCCL too, whose kernels would spin for ever."""
    with rank_processes.running(checkpoints.shared("mixtral"), "1+2", device) as ranks:
        ranks.join(0)
        ranks.post([EngineRequest("long", (5, 6, 7), sampling(900))])
        wait_until(lambda: ranks.bringers[0].call("report").engine.generated_tokens > 20, "it runs")
        dead, *survivors = ranks.ranks
        started = time.monotonic()
        dead.process.kill()
        for rank in survivors:
            assert rank.ended.result(PATIENCE)
        print(f"{device}: survivors knew within {time.monotonic() - started:.3f} s")
