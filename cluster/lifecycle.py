"""The cluster's life as a pure state machine: events in, a new state out. No Ray, no torch, no clock.

starting → ready → degraded, and stopping from anywhere. `recovering` is the state between epochs, once ranks that
died are replaced; until then a lost rank leaves the cluster degraded.
"""

from dataclasses import dataclass, field
from typing import Literal

from experts.membership import Member

State = Literal["starting", "ready", "degraded", "recovering", "stopping"]
SeatState = Literal["starting", "ready", "dead", "spare"]


@dataclass(slots=True)
class Lifecycle:
    """Seats with their states, and the cluster's state. epoch: the one in use; numbered: the newest that was asked for;
    version grows with every change that ingresses see."""

    seats: tuple[Member, ...]
    state: State = "starting"
    reason: str = "ranks are loading"
    epoch: int = 0
    numbered: int = 0
    version: int = 0
    seat_states: dict[int, SeatState] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seat_states = {seat.rank: "starting" for seat in self.seats}

    @property
    def live(self) -> tuple[Member, ...]:
        """Seats whose process is not known to be dead."""
        return tuple(seat for seat in self.seats if self.seat_states[seat.rank] != "dead")

    def next_epoch(self) -> int:
        """The number of the epoch to be built; numbers are never used twice."""
        self.numbered += 1
        return self.numbered

    def entered(self, epoch: int) -> None:
        """Steps run in `epoch`, which was planned while the one before ran."""
        self.epoch = epoch

    def joined(self, epoch: int) -> None:
        """All live seats sit in `epoch`. Old news of an earlier epoch changes nothing."""
        if epoch != self.numbered or self.state in ("stopping", "degraded"):
            return
        self.epoch = epoch
        for seat in self.live:
            self.seat_states[seat.rank] = "ready"
        self._change("ready", "")

    def died(self, rank: int, why: str) -> None:
        """The process on a seat is gone."""
        self.seat_states[rank] = "dead"
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

    def admit(self, seat: Member) -> None:
        """A process sits on a seat that had none, in an epoch that runs."""
        self.seats = tuple(sorted((*self.seats, seat), key=lambda one: one.rank))
        self.seat_states[seat.rank] = "ready"

    def release(self, rank: int) -> None:
        """The epoch that runs does without a seat; what becomes of its process is no news any more."""
        self.seats = tuple(seat for seat in self.seats if seat.rank != rank)
        del self.seat_states[rank]

    def stop(self) -> None:
        """Shutting down on purpose."""
        self._change("stopping", "the server is shutting down")

    def _change(self, state: State, reason: str) -> None:
        self.state, self.reason = state, reason
        self.version += 1
