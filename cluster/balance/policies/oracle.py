"""The clairvoyant bound: a fresh plan for loads that it is shown beforehand, moves for nothing."""

import numpy as np

from cluster.balance.forecast import ROWS, Rows
from cluster.balance.planner import PlanLimits, plan_first
from cluster.balance.policies.base import Policy, Situation
from experts.placement import Placement


class OraclePolicy(Policy):
    """Plans for the coming interval's own steps. Only a simulation can ask it."""

    name = "oracle"
    clairvoyant = True

    def plan(self, situation: Situation) -> Placement:
        assert situation.future is not None, "the oracle is asked in simulations only"
        steps = np.linspace(0, len(situation.future) - 1, min(ROWS, len(situation.future))).round().astype(int)
        loads = np.ascontiguousarray(situation.future[steps].astype(np.float64).transpose(1, 0, 2))
        rows = Rows(loads, np.full(len(steps), 1 / len(steps)), ())
        return plan_first(
            rows, situation.shape, PlanLimits(layer_seconds=0.05), situation.current.version + 1
        ).placement
