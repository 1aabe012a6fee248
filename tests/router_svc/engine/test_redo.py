"""A step breaks at every header and every layer, and is run again: tokens, loads and blocks are those of an undisturbed run."""

import threading
from collections.abc import Callable

import torch

from experts.epoch.agreement import StepHeader, StepWish
from experts.errors import RankLost
from experts.exchange.base import DispatchHandle
from experts.exchange.local import LocalExchange
from experts.exchange.wire import Route
from experts.worker.pause import Pause
from router_svc.request import EngineRequest, Event
from tests import checkpoints
from tests.engines import Harness, sampling
from tests.patience import PATIENCE


class Breaking(LocalExchange):
    """Breaks at one of its calls, headers and dispatches counted together; `at` -1: never."""

    at, calls = -1, 0

    def open_step(self, wish: StepWish) -> StepHeader:
        self._count()
        return super().open_step(wish)

    def dispatch(self, layer: int, x: torch.Tensor, route: Route) -> DispatchHandle:
        self._count()
        return super().dispatch(layer, x, route)

    def close(self) -> None:
        """It goes on."""

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise RankLost(self.epoch, self.calls, "thrown")


class AtOnce(Pause):
    """The next epoch is there at once."""

    harness: Harness
    held = 0

    def hold(self, lost: RankLost, beside: Callable[[], object] = lambda: None) -> bool:
        beside()
        self.held += 1
        self.harness.experts.abandon_step()
        return True


def requests() -> list[EngineRequest]:
    ids = [tuple(range(70, 70 + 9 * n)) for n in (1, 4, 7, 3)]
    fields = [
        {}, {"temperature": 0.9, "seed": 5, "n": 2}, {"temperature": 0.7, "seed": 1, "repetition_penalty": 1.3},
        {"logprobs": 2, "temperature": 0.5, "seed": 8},
    ]  # fmt: skip
    return [EngineRequest(f"r{i}", ids[i], sampling(5, **fields[i])) for i in range(4)]


def run(at: int, **config: int) -> tuple[dict[tuple[str, int], list[Event]], torch.Tensor, int, int]:
    """Events, loads, calls and how often it broke. All is asked before the first step, so that every run has the same ones."""
    pause = AtOnce(lambda reason: None)
    harness = Harness(checkpoints.shared("qwen2_moe"), kind=Breaking, pause=pause, **config)
    pause.harness = harness
    assert isinstance(harness.exchange, Breaking)
    harness.exchange.at = at
    for request in requests():
        harness.engine.post(request)
    thread = threading.Thread(target=harness.engine.run, daemon=True)
    thread.start()
    try:
        got = harness.collect(5)
        harness.quiet()
    finally:
        harness.engine.stop()
        thread.join(PATIENCE)
    assert harness.engine.stats().kv_blocks_held == 0
    return got, harness.experts.loads.snapshot(), harness.exchange.calls, pause.held


def same(got: dict[tuple[str, int], list[Event]], wanted: dict[tuple[str, int], list[Event]]) -> bool:
    """Whether tokens, log-probabilities and reasons are the same; times are not compared."""

    def shown(events: list[Event]) -> list[tuple[object, ...]]:
        return [(e.token_ids, e.logprobs, e.finish_reason) for e in events]  # type: ignore[union-attr]

    return {key: shown(events) for key, events in got.items()} == {key: shown(events) for key, events in wanted.items()}


def test_a_step_that_broke_anywhere_is_run_again() -> None:
    config = {"max_num_batched_tokens": 24}  # prompts come in chunks, beside others that decode
    wanted, loads, calls, _ = run(-1, **config)
    for at in range(1, calls - 1):
        got, again, _, held = run(at, **config)
        assert held == 1, f"call {at} of {calls}"
        assert same(got, wanted), f"broken at call {at} of {calls}"
        assert (again == loads).all(), f"loads after a break at call {at} of {calls}"
