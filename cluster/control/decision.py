"""Decision: what a policy wants, what that promises, and later what it brought."""

from dataclasses import dataclass

import numpy as np

from cluster.balance.forecast import forecast, rows_of
from cluster.balance.loads import StepRow, excess_of
from cluster.balance.planner import fetches
from cluster.balance.policies.base import Policy, Situation
from cluster.balance.policies.registry import ask
from cluster.balance.score import predicted_excess
from cluster.balance.shape import ClusterShape
from experts.placement import Placement


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy wants.

    before, after: predicted excess
    moves: experts that ranks fetch
    cost: s of transfer
    """

    placement: Placement
    before: float
    after: float
    moves: int
    cost: float

    @property
    def text(self) -> str:
        """A line."""
        if not self.moves:
            return f"no move pays at a predicted excess of {100 * self.before:.1f} %"
        return (
            f"{self.moves} experts to move, predicted excess {100 * self.before:.1f} % to {100 * self.after:.1f} %, "
            f"{1e3 * self.cost:.1f} ms of transfer"
        )


def decided(policy: Policy, situation: Situation) -> Decision:
    """Ask the policy, and judge its answer; blocks. Raises PolicyFailed."""
    wanted = ask(policy, situation)
    rows = forecast(situation.history, situation.interval)
    before = predicted_excess(rows, situation.current, situation.shape)
    moves = int(fetches(situation.current, wanted).sum())
    after = predicted_excess(rows, wanted, situation.shape) if moves else before
    return Decision(wanted, before, after, moves, moves * situation.cost.move_seconds())


def brought(decision: Decision, was: Placement, now: Placement, since: list[StepRow], shape: ClusterShape) -> str:
    """A line on the traffic that came since a rebalance, under the placement before, `was`, and after, `now`."""
    rows = rows_of(np.stack([row.loads for row in since]))
    old, new = (predicted_excess(rows, placement, shape) for placement in (was, now))
    return (
        f"excess of the traffic since: {100 * new:.1f} % ({100 * decision.after:.1f} % was predicted), where the "
        f"placement before would have had {100 * old:.1f} %; counted, small steps included: {100 * excess_of(since):.1f} %"
    )
