"""What `status` tells: views of the ranks put together, loads over a window, balancedness. Numbers in, numbers out."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from experts.exchange.base import ExchangeCounters
from experts.membership import Member
from router_svc.engine.step_loop import EngineStats

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RankView:
    """One rank at one moment. loads: int64 [L, S] tokens computed per slot since its start, None without slots."""

    member: Member
    state: str
    loads: IntArray | None
    engine: EngineStats | None
    exchange: ExchangeCounters = field(default_factory=ExchangeCounters)

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
        return cls(seat, "ready", table, engine, exchange or ExchangeCounters())


@dataclass(frozen=True, slots=True)
class BalancerView:
    """The balancer at one moment; of a cluster without one, the defaults. seconds: spent moving experts."""

    state: str = "off"
    reason: str = ""
    policy: str = ""
    plans: int = 0
    last: str = ""
    rebalances: int = 0
    experts_moved: int = 0
    seconds: float = 0.0


class StatusBook:
    """Remembers the last window, so that loads are recent ones. A window ends when it is asked for and has tokens."""

    def __init__(self, model: str, slots_per_rank: int) -> None:
        self._model = model
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
        placement_version: int,
        state: str,
        reason: str,
        balancer: BalancerView | None = None,
    ) -> dict[str, Any]:
        """The object of `status --json`."""
        balancer = balancer or BalancerView()
        self.look(views)
        loads = self.loads()
        last, mean = self.balancedness
        return {
            "model": self._model,
            "epoch": epoch,
            "placement_version": placement_version,
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
                }
                for view in views
            ],
            "requests": {
                "running": sum(v.engine.running for v in views if v.engine),
                "waiting": sum(v.engine.waiting for v in views if v.engine),
            },
            "balancedness": {"last": round(last, 4), "mean": round(mean, 4)},
            "rebalances": balancer.rebalances,
            "experts_moved": balancer.experts_moved,
            "recoveries": 0,
            "balancer": {
                "state": balancer.state,
                "reason": balancer.reason,
                "policy": balancer.policy,
                "plans": balancer.plans,
                "last": balancer.last,
                "seconds": round(balancer.seconds, 4),
            },
        }
