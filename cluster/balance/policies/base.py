"""Policy: what decides a placement. The live balancer and the simulator call nothing else."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.balance.cost import CostModel
from cluster.balance.shape import ClusterShape
from experts.errors import UserError
from experts.placement import Placement

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Situation:
    """What a policy may look at when it is asked.

    history: int64 [T, L, E] tokens per expert of past steps, newest last
    current: the placement in use
    interval: steps until it is asked again
    free: whether moves cost nothing this time (nothing is served yet)
    future: the interval's own loads [T', L, E], None unless the policy is clairvoyant and this is a simulation

    Arrays are copies, or can't be written to.
    """

    history: IntArray
    current: Placement
    shape: ClusterShape
    cost: CostModel
    interval: int
    free: bool = False
    future: IntArray | None = None


class PolicyFailed(UserError):
    """A policy raised, or returned what is not a placement for this model; the placement in use stays."""


class Policy(ABC):
    """A subclass in a file of its own is all that a new policy needs; `--policy module:Class` takes it from outside, and
    runs it in a process of its own.

    name: in tables
    split: how tokens are divided under it, "exact" (water-filling) or "even"
    clairvoyant: it wants the future
    """

    name: str = ""
    split: str = "exact"
    clairvoyant: bool = False

    @abstractmethod
    def plan(self, situation: Situation) -> Placement:
        """The placement to go to; `situation.current` itself for "stay". The version is set by the caller."""

    def close(self) -> None:  # noqa: B027  most have nothing to free
        """Not asked any more."""
