"""The cluster's life as a pure state machine: events in, a new state out. No Ray, no torch, no clock, no ranks.

starting → ready → degraded, and stopping from anywhere. `recovering` is the state between epochs, once ranks that
died are replaced; until then a lost rank leaves the cluster degraded.
"""

from dataclasses import dataclass
from typing import Literal

State = Literal["starting", "ready", "degraded", "recovering", "stopping"]


@dataclass(slots=True)
class Lifecycle:
    """The cluster's state. epoch: the one in use; numbered: the newest that was asked for; version grows with every change
    that ingresses see."""

    state: State = "starting"
    reason: str = "ranks are loading"
    epoch: int = 0
    numbered: int = 0
    version: int = 0

    def next_epoch(self) -> int:
        """The number of the epoch to be built; numbers are never used twice."""
        self.numbered += 1
        return self.numbered

    def entered(self, epoch: int) -> None:
        """Steps run in `epoch`, which was planned while the one before ran."""
        self.epoch = epoch

    def joined(self, epoch: int) -> bool:
        """All live seats sit in `epoch`; whether it is in use now. Old news of an earlier epoch changes nothing."""
        if epoch != self.numbered or self.state in ("stopping", "degraded"):
            return False
        self.epoch = epoch
        self._change("ready", "")
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
