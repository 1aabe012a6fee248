"""One attention rank's engine in this process, with everything real but a front door. For tests."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from experts.checkpoint.reader import CheckpointReader
from experts.exchange.local import LocalExchange
from experts.layers import ExpertLayers
from experts.placement import Placement
from experts.slots.loader import load_slots
from experts.slots.slots import ExpertSlots
from experts.worker.pause import Pause
from router_svc.engine.config import EngineConfig
from router_svc.engine.step_loop import Engine
from router_svc.models.batch import KVCache
from router_svc.models.decoder import build_model
from router_svc.models.registry import load_spec
from router_svc.request import EngineRequest, Event, FailedEvent, TokenEvent
from router_svc.sampling import Sampling
from tests.patience import PATIENCE, wait_until


def sampling(max_tokens: int, **fields: object) -> Sampling:
    """Greedy to the end unless said otherwise."""
    return Sampling(**{"max_tokens": max_tokens, "seed": 0, "temperature": 0.0, "ignore_eos": True, **fields})  # type: ignore[arg-type]


def renamed(requests: list[EngineRequest], suffix: str) -> list[EngineRequest]:
    """The same requests under other ids, to be asked once more."""
    return [replace(request, request_id=request.request_id + suffix) for request in requests]


class Harness:
    """An engine whose events are sorted by request."""

    def __init__(
        self, folder: Path, device: str = "cpu", kind: type[LocalExchange] = LocalExchange, pause: Pause | None = None,
        **config: int | bool,
    ) -> None:  # fmt: skip
        spec, reader = load_spec(folder), CheckpointReader(folder)
        fields = {
            "max_model_len": 1024, "max_num_seqs": 16, "max_num_batched_tokens": 256, "max_queue_len": 64, "kv_blocks": 256,
        } | config  # fmt: skip
        self.config = EngineConfig(**fields)  # type: ignore[arg-type]
        placement = Placement.first(spec.experts.moe_layers, spec.experts.experts, 1, spec.experts.experts)
        slots = ExpertSlots(spec.experts, placement.slots_per_rank, torch.float32, device)
        load_slots(slots, placement.local(0), reader)
        self.exchange = exchange = kind(placement, self.config.max_num_batched_tokens)
        self.experts = ExpertLayers(spec.experts, exchange, slots, torch.float32, device)
        cache = KVCache.allocate(
            spec.layers,
            self.config.kv_blocks,
            self.config.block_size,
            spec.kv_heads,
            spec.head_dim,
            torch.float32,
            device,
        )
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.engine = Engine(
            build_model(spec, reader, torch.float32, device),
            self.experts, exchange, self.config, cache, self._deliver, pause,
        )  # fmt: skip
        self.thread = threading.Thread(target=self.engine.run, daemon=True)

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            self.events.put(event)

    def collect(self, choices: int, timeout: float = PATIENCE) -> dict[tuple[str, int], list[Event]]:
        """Events until `choices` choices (or failed requests) have ended, by (request, choice); -1 for failures."""
        got: dict[tuple[str, int], list[Event]] = {}
        ended = 0
        while ended < choices:
            event = self.events.get(timeout=timeout)
            choice = -1 if isinstance(event, FailedEvent) else event.choice
            got.setdefault((event.request_id, choice), []).append(event)
            ended += isinstance(event, FailedEvent) or event.finish_reason is not None
        return got

    def complete(self, requests: list[EngineRequest]) -> list[list[int]]:
        """Token ids of each request's choices, in order, all posted at once."""
        for request in requests:
            self.engine.post(request)
        got = self.collect(sum(request.n for request in requests))
        return [tokens_of(got[request.request_id, choice]) for request in requests for choice in range(request.n)]

    def quiet(self) -> None:
        """Wait until nothing runs; fails if blocks stay held."""

        def idle() -> bool:
            stats = self.engine.stats()
            return not (stats.running or stats.waiting or stats.kv_blocks_held)

        wait_until(idle, "an engine that holds nothing")


def tokens_of(events: list[Event]) -> list[int]:
    """The ids of one choice's events, which must be gapless."""
    ids: list[int] = []
    for event in events:
        assert isinstance(event, TokenEvent), event
        assert event.index == len(ids), f"a gap or a repeat at {len(ids)}: {event}"
        ids.extend(event.token_ids)
    return ids


@contextmanager
def running(folder: Path, device: str = "cpu", **config: int | bool) -> Iterator[Harness]:
    """A started engine; stopped and joined at the end."""
    harness = Harness(folder, device, **config)
    harness.thread.start()
    try:
        yield harness
    finally:
        harness.engine.stop()
        harness.thread.join(PATIENCE)
        assert not harness.thread.is_alive(), "the step loop did not end"
