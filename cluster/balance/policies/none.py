"""No balancing: the first layout for ever."""

from cluster.balance.policies.base import Policy, Situation
from experts.placement import Placement


class NoPolicy(Policy):
    """Stays. Tokens of the first layout's copies are still divided by load."""

    name = "none"

    def plan(self, situation: Situation) -> Placement:
        return situation.current
