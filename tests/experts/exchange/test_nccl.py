"""The same exchange over NCCL, on machines with a GPU: members are processes, all on the first one."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
from torch import distributed

from experts.epoch.agreement import StepWish
from experts.errors import RankLost, UserError
from experts.exchange.block import BlockForm
from experts.exchange.collective import CollectiveExchange
from experts.exchange.group import build_group, connect_store, open_store
from experts.exchange.nccl import NcclGroup
from experts.exchange.transport import Group
from experts.exchange.wire import Route
from experts.placement import Placement
from experts.slots.ffn import swiglu_reference
from tests.experts.exchange.groups import guarded, membership, order_of, random_inputs
from tests.patience import PATIENCE

HAS_GPU = torch.cuda.is_available() and distributed.is_nccl_available()
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")
DEVICE = "cuda:0" if HAS_GPU else "cpu"


@pytest.mark.skipif(HAS_GPU, reason="has a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(UserError, match="no NCCL or no CUDA device"):
        NcclGroup(distributed.HashStore(), 0, 1, "cuda:0", 1.0)


class Members:
    """Processes that run `body(build, pipe, index)`; `build(epoch, index, size, timeout, deadline)` makes a group."""

    def __init__(self, size: int, body: Callable[..., None]) -> None:
        self.store = open_store("127.0.0.1")
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes = []
        for index in range(size):
            mine, theirs = context.Pipe()
            process = context.Process(target=_main, args=(body, self.store.port, index, theirs), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(mine)
            self.processes.append(process)

    def hear(self, index: int, seconds: float = PATIENCE) -> Any:
        """What a member says next."""
        assert self.pipes[index].poll(seconds), f"member {index} said nothing in {seconds:.0f} s"
        return self.pipes[index].recv()

    def __enter__(self) -> "Members":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.join(PATIENCE)
        self.store.close()


def _main(body: Callable[..., None], port: int, index: int, pipe: Connection) -> None:
    os.environ["NCCL_HOSTID"] = str(index)  # NCCL refuses two members on one device of a host
    torch.set_num_threads(1)

    def build(epoch: int, index: int, size: int, timeout: float, deadline: float = PATIENCE) -> Group:
        store = connect_store("127.0.0.1", port, deadline)
        return build_group(store, epoch, index, size, DEVICE, "127.0.0.1", timeout, deadline)

    body(build, pipe, index)


def sums_body(build: Callable[..., Group], pipe: Connection, index: int) -> None:
    experts, width, members = 8, 16, membership(2, 0, colocate=True)
    form = BlockForm(hidden=32, top_k=2, dtype=torch.float32)
    placement = Placement.first(1, experts, 2, 5)
    generator = torch.Generator().manual_seed(9)
    w13 = torch.randn(experts, 2 * width, form.hidden, generator=generator)
    w2 = torch.randn(experts, form.hidden, width, generator=generator)
    exchange = CollectiveExchange(order_of(index, placement, form), guarded(build(0, index, 2, PATIENCE), members))
    held = torch.from_numpy(placement.local(index)[0].copy())
    worst = 0.0
    for step in range(20):
        own = 5 * index + step
        exchange.open_step(StepWish(decode=own))
        x, ids, weights = (t.to(DEVICE) for t in random_inputs(own, form, experts, seed=step))
        handle = exchange.dispatch(0, x, Route(ids, weights))
        batch = handle.wait()
        y = swiglu_reference(batch.x, batch.slots, batch.weights, w13[held].to(DEVICE), w2[held].to(DEVICE))
        got = handle.combine(y).wait()
        want = swiglu_reference(x.cpu(), ids.cpu(), weights.cpu(), w13, w2)
        worst = max(worst, float((got.cpu() - want).abs().max()) if own else 0.0)
    pipe.send(worst)
    pipe.recv()


@pytest.mark.gpu
@needs_gpu
def test_sums_over_nccl_are_the_references() -> None:
    with Members(2, sums_body) as members:
        assert max(members.hear(0), members.hear(1)) < 1e-3


def death_body(build: Callable[..., Group], pipe: Connection, index: int) -> None:
    group = build(0, index, 3, 10 * PATIENCE)
    mine, out = torch.full((4,), index, device=DEVICE), torch.zeros(12, dtype=torch.int64, device=DEVICE)
    group.all_gather(out, mine).wait()
    pipe.send(out.tolist())
    pipe.recv()
    ended: list[float] = []

    def wait() -> None:
        try:
            group.all_gather(out, mine).wait()
        except RuntimeError:
            ended.append(time.monotonic())

    waiting = threading.Thread(target=wait)
    waiting.start()
    pipe.recv()  # member 0 is dead
    assert waiting.is_alive(), "a collective ended without all members"
    closed = time.monotonic()
    group.close()
    waiting.join(PATIENCE)
    pipe.send(ended[0] - closed)
    again = build(1, index - 1, 2, PATIENCE)  # the survivors go on, in the same processes
    both = torch.zeros(8, dtype=torch.int64, device=DEVICE)
    again.all_gather(both, mine).wait()
    pipe.send(both.tolist())
    pipe.recv()


@pytest.mark.gpu
@needs_gpu
def test_survivors_of_a_killed_member_meet_again() -> None:
    with Members(3, death_body) as members:
        for index in range(3):
            assert members.hear(index) == [0] * 4 + [1] * 4 + [2] * 4
        for index in (1, 2):
            members.pipes[index].send("wait")
        os.kill(members.processes[0].pid or 0, signal.SIGKILL)
        members.processes[0].join(PATIENCE)
        time.sleep(1.0)  # they wait in a kernel by now
        for index in (1, 2):
            members.pipes[index].send("dead")
        seconds = [members.hear(index) for index in (1, 2)]
        print(f"a wait ended {max(seconds):.3f} s after the group was closed")
        for index in (1, 2):
            assert members.hear(index) == [1] * 4 + [2] * 4


def late_body(build: Callable[..., Group], pipe: Connection, index: int) -> None:
    group = build(0, index, 2, 2.0)
    if index == 0:
        started = time.monotonic()
        out, mine = torch.zeros(2, device=DEVICE), torch.zeros(1, device=DEVICE)
        try:
            group.all_gather(out, mine).wait()
            pipe.send("it ended well")
        except RuntimeError as error:
            pipe.send((str(error), time.monotonic() - started))
        time.sleep(4.0)  # torch's own watchdog would end this process
        pipe.send("alive")
    pipe.recv()


@pytest.mark.gpu
@needs_gpu
def test_a_member_that_does_not_come_ends_the_wait_and_not_the_process() -> None:
    with Members(2, late_body) as members:
        error, seconds = members.hear(0)
        assert error == "a member has not answered within 2 s"
        assert seconds < PATIENCE / 2
        assert members.hear(0) == "alive"


def alone_body(build: Callable[..., Group], pipe: Connection, index: int) -> None:
    started = time.monotonic()
    try:
        build(0, index, 2, PATIENCE, 4.0)
        pipe.send("it ended well")
    except RankLost as lost:
        pipe.send((str(lost), time.monotonic() - started))
    pipe.recv()


@pytest.mark.gpu
@needs_gpu
def test_joining_alone_ends_at_its_deadline() -> None:
    """The first member has the id of the communicator and is inside NCCL; a peer that died there looks the same."""
    with Members(1, alone_body) as members:
        error, seconds = members.hear(0)
        assert "did not come together" in error
        assert seconds < PATIENCE / 2
