"""What `status` tells: views of the ranks put together, loads over a window, balancedness. Numbers in, numbers out."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch

from experts.epoch.membership import Member
from experts.exchange.base import ExchangeCounters
from experts.placement import Placement
from router_svc.engine.step_loop import EngineStats

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RankView:
    """One rank at one moment.

    loads: int64 [L, S] tokens computed per slot since its start, None without slots
    memory_bytes: of its process, resident, 0 = not known
    """

    member: Member
    state: str
    loads: IntArray | None
    engine: EngineStats | None
    exchange: ExchangeCounters = field(default_factory=ExchangeCounters)
    memory_bytes: int = 0

    @classmethod
    def here(
        cls,
        member: Member,
        loads: torch.Tensor | None,
        engine: EngineStats | None,
        exchange: ExchangeCounters | None = None,
    ) -> "RankView":
        """The view of a rank in this process."""
        seat = Member(member.rank, member.role, member.incarnation, member.node_ip, os.getpid())
        table = None if loads is None else loads.numpy()
        memory = psutil.Process().memory_info().rss
        return cls(seat, "ready", table, engine, exchange or ExchangeCounters(), memory)


@dataclass(frozen=True, slots=True)
class BalancerView:
    """The balancer at one moment; of a cluster without one, the defaults.

    seconds: spent moving experts
    recoveries: epochs entered after a loss
    """

    state: str = "off"
    reason: str = ""
    policy: str = ""
    plans: int = 0
    last: str = ""
    rebalances: int = 0
    experts_moved: int = 0
    seconds: float = 0.0
    recoveries: int = 0


class StatusBook:
    """Remembers the last window, so that loads are recent ones. A window ends when it is asked for and has tokens.

    model: the served name."""

    def __init__(self, model: str, slots_per_rank: int) -> None:
        self.model = model
        self._slots = slots_per_rank
        self._before: dict[int, IntArray] = {}
        self._window: dict[int, IntArray] = {}
        self._last = 1.0
        self._weighted = 0.0  # balancedness times tokens, and tokens, since the start
        self._tokens = 0

    def _begun(self, rank: int, loads: IntArray) -> IntArray:
        """Totals of a rank when the window began; 0 for one whose process is a new one since."""
        before = self._before.get(rank)
        return np.zeros_like(loads) if before is None or (loads < before).any() else before

    def look(self, views: Sequence[RankView]) -> None:
        """Take in the ranks' running totals."""
        now = {view.member.rank: view.loads for view in views if view.loads is not None}
        window = {rank: loads - self._begun(rank, loads) for rank, loads in now.items()}
        tokens = int(sum(loads.sum() for loads in window.values()))
        if not tokens:
            return
        self._before, self._window = now, window
        per_rank = np.stack([loads.sum(axis=1) for loads in window.values()])  # [R, L]
        busy = per_rank.max(axis=0) > 0
        self._last = float((per_rank.mean(axis=0)[busy] / per_rank.max(axis=0)[busy]).mean())
        self._weighted += self._last * tokens
        self._tokens += tokens

    @property
    def balancedness(self) -> tuple[float, float]:
        """(of the last window, mean over tokens): mean rank load over the busiest rank's, mean over layers."""
        return self._last, self._weighted / self._tokens if self._tokens else 1.0

    def loads(self) -> dict[int, float]:
        """Tokens of each rank in the last window over the mean rank's."""
        totals = {rank: float(loads.sum()) for rank, loads in self._window.items()}
        mean = sum(totals.values()) / len(totals) if totals else 0.0
        return {rank: total / mean if mean else 0.0 for rank, total in totals.items()}

    def status(
        self,
        views: Sequence[RankView],
        epoch: int,
        placement: Placement,
        state: str,
        reason: str,
        balancer: BalancerView | None = None,
    ) -> dict[str, Any]:
        """The object of `status --json`."""
        balancer = balancer or BalancerView()
        self.look(views)
        loads = self.loads()
        last, mean = self.balancedness
        sole = placement.sole_copies()
        return {
            "model": self.model,
            "epoch": epoch,
            "placement_version": placement.version,
            "state": state,
            "reason": reason,
            "workers": [
                {
                    "rank": view.member.rank,
                    "role": view.member.role,
                    "pid": view.member.pid,
                    "node_ip": view.member.node_ip,
                    "state": view.state,
                    "slots": self._slots if view.member.holds_experts else 0,
                    "load": round(loads.get(view.member.rank, 0.0), 4),
                    "memory_bytes": view.memory_bytes,
                    "sole_copies": len(sole.get(view.member.rank, ())),
                }
                for view in views
            ],
            **_serving([view.engine for view in views if view.engine is not None]),
            "balancedness": {"last": round(last, 4), "mean": round(mean, 4)},
            "rebalances": balancer.rebalances,
            "experts_moved": balancer.experts_moved,
            "recoveries": balancer.recoveries,
            "balancer": {
                "state": balancer.state,
                "reason": balancer.reason,
                "policy": balancer.policy,
                "plans": balancer.plans,
                "last": balancer.last,
                "seconds": round(balancer.seconds, 4),
            },
            "sole_experts": _by_layer(sole, placement),
        }


def _by_layer(sole: dict[int, list[tuple[int, int]]], placement: Placement) -> list[dict[str, Any]]:
    """Experts that one rank alone holds, by layer; none where that is so of all."""
    layers: dict[int, list[int]] = {}
    for layer, expert in sorted(pair for pairs in sole.values() for pair in pairs):
        layers.setdefault(layer, []).append(expert)
    if sum(map(len, layers.values())) == placement.layers * placement.experts:
        return []
    return [{"layer": layer, "experts": experts} for layer, experts in layers.items()]


def _serving(engines: Sequence[EngineStats]) -> dict[str, Any]:
    """What the engines do for their clients, all together."""
    firsts = sum(engine.recent.first_tokens for engine in engines)
    waited = sum(engine.recent.first_tokens * engine.recent.first_token_seconds for engine in engines)
    blocks = sum(engine.kv_blocks for engine in engines)
    return {
        "requests": {
            "running": sum(engine.running for engine in engines),
            "waiting": sum(engine.waiting for engine in engines),
        },
        "tokens_per_second": round(sum(engine.recent.tokens_per_second for engine in engines), 2),
        "time_to_first_token": round(waited / firsts, 4) if firsts else 0.0,
        "kv_cache_usage": round(sum(engine.kv_blocks_held for engine in engines) / blocks, 4) if blocks else 0.0,
    }
