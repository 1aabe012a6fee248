"""Ranks as processes below Ray: each loads its order and joins epochs; the test is their supervisor.

    with rank_processes.running(folder, "1+2") as ranks:
        ranks.join(0)
        ranks.complete(requests)

On one GPU too: NCCL refuses two ranks of a group on one device of a host, so each rank says that its host is its own.
"""

import asyncio
import multiprocessing
import os
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from cluster.config import ServeConfig
from cluster.control.orders import Orders
from cluster.plan import make_plan
from experts.epoch.membership import EpochRecord, Membership
from experts.exchange.group import open_store
from experts.exchange.registry import exchange_for
from experts.worker.worker import WorkerOrder
from router_svc.request import EngineRequest, Event
from router_svc.worker import AttentionOrder
from tests.engines import tokens_of
from tests.patience import PATIENCE

_TOPOLOGIES = {"1+1": (1, 1), "1+2": (1, 2), "2+2": (2, 2)}
_START = 2 * PATIENCE  # s, for a process to import torch and load


class Rank:
    """A rank's process, and calls of its worker's methods by name."""

    def __init__(self, order: WorkerOrder, heard: Any) -> None:
        """heard: called with (kind, value) for what the rank says by itself, from a thread."""
        self.seat = order.seat
        self.ended: Future[str] = Future()  # why its steps ended
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_main, args=(order, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self._lock = threading.Lock()
        self._calls: dict[int, Future[Any]] = {}
        self._heard = heard
        self.loaded: Future[tuple[int, int]] = self._expect(0)  # the ports of its weights and its links
        threading.Thread(target=self._listen, daemon=True).start()

    def begin(self, verb: str, *args: Any) -> Future[Any]:
        """Call a method; a Future of what it returns."""
        with self._lock:
            number = len(self._calls)
            answer = self._expect(number)
            try:
                self._pipe.send((number, verb, args))
            except OSError as gone:
                answer.set_exception(gone)
        return answer

    def call(self, verb: str, *args: Any) -> Any:
        """Call a method and wait for what it returns."""
        return self.begin(verb, *args).result(PATIENCE)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self.process.kill()
        self.process.join(PATIENCE)

    def _expect(self, number: int) -> Future[Any]:
        self._calls[number] = Future()
        return self._calls[number]

    def _listen(self) -> None:
        while True:
            try:
                kind, *what = self._pipe.recv()
            except (EOFError, OSError):
                gone = ConnectionError(f"the process of rank {self.seat.rank} is gone")
                for call in [call for call in list(self._calls.values()) if not call.done()]:
                    call.set_exception(gone)
                return
            if kind == "answer":
                number, result, error = what
                call = self._calls[number]
                call.set_result(result) if error is None else call.set_exception(error)
            elif kind == "ended":
                self.ended.set_result(what[0])
            else:
                self._heard(kind, what[0])


class Ranks:
    """A plan's ranks, loaded. They are in no epoch yet."""

    def __init__(self, folder: Path, topology: str, device: str = "cpu", **options: Any) -> None:
        attention, experts = _TOPOLOGIES[topology]
        config = ServeConfig(
            dtype="float32", max_num_batched_tokens=192, enable_eplb=False, device="cpu",
            attention_workers=attention, expert_workers=experts, **options,
        )  # fmt: skip
        plan = make_plan(folder, config, check_ports=False, check_text=False)
        self.plan = replace(
            plan, device=device, exchange=exchange_for(device)
        )  # `serve` would want a GPU for each rank
        self.store = open_store("127.0.0.1")
        self._answers: queue.SimpleQueue[Event] = queue.SimpleQueue()
        orders = Orders(self.plan)
        self.ranks = [
            Rank(replace(orders.of(seat, "secret", self.plan.placement, orders.policy), threads=1), self._heard)
            for seat in self.plan.seats
        ]
        loaded = {rank.seat.rank: rank.loaded.result(_START) for rank in self.ranks}
        self.ports = {rank: weights for rank, (weights, _) in loaded.items()}
        self._links = {rank: links for rank, (_, links) in loaded.items()}

    @property
    def bringers(self) -> list[Rank]:
        """Ranks that bring tokens."""
        return [rank for rank in self.ranks if rank.seat.runs_attention]

    @property
    def holders(self) -> list[Rank]:
        """Ranks that hold experts."""
        return [rank for rank in self.ranks if rank.seat.holds_experts]

    def record(self, epoch: int, planned: bool = False, timeout: float = PATIENCE) -> EpochRecord:
        """An epoch of all ranks. timeout: s."""
        members = tuple(replace(rank.seat, exchange_port=self._links[rank.seat.rank]) for rank in self.ranks)
        return EpochRecord(Membership(epoch, members), "127.0.0.1", self.store.port, timeout, planned)

    def join(self, epoch: int, timeout: float = PATIENCE) -> None:
        """Enter an epoch from none."""
        record = self.record(epoch, timeout=timeout)
        for joining in [rank.begin("join", record) for rank in self.ranks]:
            joining.result(PATIENCE)

    def post(self, requests: list[EngineRequest]) -> None:
        """Hand requests to the attention ranks in turn."""
        bringers = self.bringers
        for number, request in enumerate(requests):
            bringers[number % len(bringers)].begin("post", request)

    def complete(self, requests: list[EngineRequest]) -> list[list[int]]:
        """Token ids of each request (n = 1), all posted at once."""
        self.post(requests)
        return self.collect([request.request_id for request in requests])

    def collect(self, names: list[str]) -> list[list[int]]:
        """Token ids of requests that were posted."""
        got: dict[str, list[Event]] = {name: [] for name in names}
        left = len(names)
        while left:
            event = self._answers.get(timeout=PATIENCE)
            got[event.request_id].append(event)
            left -= getattr(event, "finish_reason", "failed") is not None
        return [tokens_of(events) for events in got.values()]

    def close(self) -> None:
        """End all processes."""
        for rank in self.ranks:
            rank.kill()
        self.store.close()

    def _heard(self, kind: str, value: Any) -> None:
        if kind == "ring":
            for rank in self.ranks:
                rank.begin("ring", value)
        elif kind == "events":
            for event in value:
                self._answers.put(event)


@contextmanager
def running(folder: Path, topology: str, device: str = "cpu", **options: Any) -> Iterator[Ranks]:
    """Loaded ranks; killed at the end."""
    ranks = Ranks(folder, topology, device, **options)
    try:
        yield ranks
    finally:
        ranks.close()


def _main(order: WorkerOrder, pipe: Connection) -> None:
    """A rank's process: loads, then does what it is asked to, each call in a thread."""
    os.environ["NCCL_HOSTID"] = str(order.seat.rank)
    torch.set_num_threads(1)
    lock = threading.Lock()

    def say(kind: str, *what: Any) -> None:
        with lock:
            pipe.send((kind, *what))

    if isinstance(order, AttentionOrder):
        order = replace(order, deliver=lambda events: say("events", events))
    worker = asyncio.run(order.load(lambda done, total: None))
    say("answer", 0, (worker.weights_port, worker.exchange_port), None)
    verbs = {
        "ring": worker.bell.ring,
        "join": lambda record: worker.join(record, lambda moment: say("ring", moment), lambda why: say("ended", why)),
        "version": lambda: worker.version,
        "epoch": lambda: worker.epoch,
        "nudge": lambda: worker.joined.body.nudge() if worker.joined else None,
    }

    def answer(number: int, verb: str, args: tuple[Any, ...]) -> None:
        try:
            say("answer", number, verbs.get(verb, getattr(worker, verb, None))(*args), None)
        except Exception as error:
            say("answer", number, None, error)

    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            os._exit(0)
        threading.Thread(target=answer, args=asked, daemon=True).start()
