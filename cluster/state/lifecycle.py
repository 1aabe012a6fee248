"""The cluster's life as a pure state machine: events in, a new state out. No Ray, no torch, no clock, no ranks.

starting → ready ⇄ recovering → degraded, and stopping from anywhere. `recovering` is the state between a loss and the
next epoch: requests are taken and wait. What can't be recovered from leaves the cluster degraded, for good.
"""

from dataclasses import dataclass
from typing import Literal

State = Literal["starting", "ready", "degraded", "recovering", "stopping"]


@dataclass(slots=True)
class Lifecycle:
    """The cluster's state.

    epoch: the one in use, or the last one that was
    version grows with every change that ingresses see
    """

    state: State = "starting"
    reason: str = "ranks are loading"
    epoch: int = 0
    version: int = 0

    def entered(self, epoch: int) -> None:
        """Steps run in `epoch`, which was planned while the one before ran."""
        self.epoch = epoch

    def joined(self, epoch: int) -> bool:
        """All live seats sit in `epoch`; whether it is in use now."""
        if epoch <= self.epoch or self.state in ("stopping", "degraded"):
            return False
        self.epoch = epoch
        self._change("ready", "")
        return True

    def recovers(self, why: str) -> bool:
        """A loss that the others go on from, or how far they are; whether they may."""
        if self.state not in ("ready", "recovering"):
            return False
        if (self.state, self.reason) != ("recovering", why):
            self._change("recovering", why)
        return True

    def died(self, why: str) -> None:
        """The process on a seat is gone."""
        if self.state != "stopping":
            self._change("degraded", why)

    def broke(self, why: str) -> None:
        """The group ended though no process is known to have died."""
        if self.state not in ("stopping", "degraded"):
            self._change("degraded", why)

    def notice(self, why: str) -> None:
        """Something that people should know while the ranks serve on; empty when it is over."""
        if self.state == "ready" and why != self.reason:
            self._change("ready", why)

    def stop(self) -> None:
        """Shutting down on purpose."""
        self._change("stopping", "the server is shutting down")

    def _change(self, state: State, reason: str) -> None:
        self.state, self.reason = state, reason
        self.version += 1
