"""Ours: forecast, then few moves that earn their price under the exact split."""

from dataclasses import replace

from cluster.balance.forecast import WINDOWS, forecast
from cluster.balance.planner import Plan, PlanLimits, plan_first, plan_next
from cluster.balance.policies.base import Policy, Situation
from experts.placement import Placement

HISTORY = 200  # steps that the forecast may look back
_FIRST_SECONDS = 0.1  # per layer, while nothing is served yet


class TokenyardPolicy(Policy):
    """See cluster.balance.planner. `last` is the newest plan, with its predicted gain."""

    name = "tokenyard"

    def __init__(
        self, limits: PlanLimits | None = None, windows: tuple[int, ...] = WINDOWS, trend: bool = True
    ) -> None:
        self.limits = limits or PlanLimits()
        self._windows, self._trend = windows, trend
        self.last: Plan | None = None

    def plan(self, situation: Situation) -> Placement:
        rows = forecast(situation.history[-HISTORY:], situation.interval, self._windows, self._trend)
        if situation.free:
            limits = replace(self.limits, max_moves=None, layer_seconds=_FIRST_SECONDS)
            self.last = plan_first(rows, situation.shape, limits)
        else:
            self.last = plan_next(rows, situation.shape, situation.current, situation.cost, self.limits)
        return self.last.placement
