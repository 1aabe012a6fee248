"""Whole topologies with ranks as threads of one process and real gloo between them: every actor's inside, no Ray."""

import itertools
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from cluster.config import ServeConfig
from cluster.plan import ServePlan, make_plan
from experts.checkpoint.reader import CheckpointReader
from experts.doorbell import Moment
from experts.exchange.group import open_store
from experts.membership import EpochRecord, Membership
from experts.rank import RankOrder, RankSeat
from experts.rank_loop import ExpertRankLoop
from router_svc.engine.batch import KVCache
from router_svc.engine.step_loop import Engine
from router_svc.models.decoder import build_model
from router_svc.request import EngineRequest, Event
from tests.engines import tokens_of
from tests.patience import PATIENCE

TOPOLOGIES = {
    "1+0": {"attention_workers": 1, "expert_workers": 0},
    "1+2": {"attention_workers": 1, "expert_workers": 2},
    "2+2": {"attention_workers": 2, "expert_workers": 2},
    "colocated2": {"attention_workers": 2, "colocate": True},
}


class ThreadCluster:
    """All ranks of a plan. Requests go to the attention ranks in turn."""

    def __init__(self, plan: ServePlan) -> None:
        self.plan = plan
        self.store = open_store("127.0.0.1")
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.engines: list[Engine] = []
        self.seats: list[RankSeat] = []
        self.lost: list[str] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        record = EpochRecord(Membership(1, self.plan.seats), "127.0.0.1", self.store.port, PATIENCE)
        for seat in self.plan.seats:
            order = RankOrder(
                seat.rank, self.plan.folder, self.plan.spec.experts, self.plan.placement, self.plan.dtype, "cpu",
                torch.get_num_threads(), self.plan.engine.max_num_batched_tokens, "127.0.0.1", seat.holds_experts, "secret",
            )  # fmt: skip
            self.seats.append(RankSeat(order))
        joins = [threading.Thread(target=self._join, args=(s, record), daemon=True) for s in self.seats]
        for thread in joins:
            thread.start()
        for thread in joins:
            thread.join(PATIENCE)
        for seat, member in zip(self.seats, self.plan.seats, strict=True):
            assert seat.layers is not None, "a rank did not join"
            assert seat.exchange is not None, "a rank did not join"
            if member.runs_attention:
                engine = self._engine(seat)
                self.engines.append(engine)
                body = engine.run
            else:
                body = ExpertRankLoop(seat.layers, seat.exchange, seat.bell, self.lost.append).run
            self._threads.append(threading.Thread(target=body, daemon=True))
        for thread in self._threads:
            thread.start()

    def complete(self, requests: list[EngineRequest]) -> list[list[int]]:
        """Token ids of each request (n = 1), all posted at once."""
        for engine, request in zip(itertools.cycle(self.engines), requests, strict=False):
            engine.post(request)
        got: dict[str, list[Event]] = {request.request_id: [] for request in requests}
        left = len(requests)
        while left:
            event = self.events.get(timeout=PATIENCE)
            got[event.request_id].append(event)
            left -= getattr(event, "finish_reason", "failed") is not None
        return [tokens_of(got[request.request_id]) for request in requests]

    def stop(self) -> None:
        """End every loop and drop what `start` made, also where it failed halfway."""
        for engine in self.engines[:1]:
            engine.stop()
        try:
            for thread in self._threads:
                thread.join(PATIENCE)
                assert not thread.is_alive(), "a step loop did not end"
        finally:
            for seat in self.seats:
                seat.leave()
            self.store.close()

    def _join(self, seat: RankSeat, record: EpochRecord) -> None:
        seat.load(lambda done, total: None)
        seat.join(record)

    def _engine(self, seat: RankSeat) -> Engine:
        plan, spec = self.plan, self.plan.spec
        assert seat.layers is not None, "a rank did not join"
        assert seat.exchange is not None, "a rank did not join"
        cache = KVCache.allocate(
            spec.layers, plan.engine.kv_blocks, plan.engine.block_size, spec.kv_heads, spec.head_dim, plan.dtype, "cpu"
        )
        model = build_model(spec, CheckpointReader(plan.folder), plan.dtype, "cpu")
        return Engine(model, seat.layers, seat.exchange, seat.bell, plan.engine, cache, self._deliver, self._ring)

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            self.events.put(event)

    def _ring(self, wanted: Moment) -> None:
        for seat in self.seats:
            seat.bell.ring(wanted)


def plan_for(folder: Path, topology: str, **options: object) -> ServePlan:
    """A float32 plan of a topology; ports are not checked."""
    config = ServeConfig(**{"dtype": "float32", "max_num_batched_tokens": 192, **TOPOLOGIES[topology], **options})  # type: ignore[arg-type]
    return make_plan(folder, config, check_ports=False, check_text=False)


@contextmanager
def running(folder: Path, topology: str, **options: object) -> Iterator[ThreadCluster]:
    """A started cluster of threads; its loops must end cleanly."""
    cluster = ThreadCluster(plan_for(folder, topology, **options))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
    assert not [reason for reason in cluster.lost if reason], cluster.lost
