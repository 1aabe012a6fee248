"""Roster: one record for each rank's process of a cell: who it is, how it is called, and what was last heard of it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from experts.epoch.membership import Member, Role
from experts.worker.host import Loaded, WorkerHost
from experts.worker.worker import RankReport

SeatState = Literal["starting", "ready", "dead", "spare"]


@dataclass(slots=True, eq=False)
class Seat:
    """A rank with the process that has its seat.

    port: its verbs
    link_port, weights_port: where it listens for ingresses and for peers that fetch experts, 0 = not, or not yet
    report: the newest running totals
    """

    member: Member
    port: WorkerHost
    state: SeatState = "starting"
    link_port: int = 0
    weights_port: int = 0
    report: RankReport | None = None

    @property
    def rank(self) -> int:
        """The seat's number."""
        return self.member.rank

    @property
    def title(self) -> str:
        """The rank for people."""
        return f"rank {self.rank} ({self.member.role}, pid {self.member.pid})"

    def loaded(self, found: Loaded) -> None:
        """It has its weights."""
        self.member = replace(self.member, pid=found.pid, exchange_port=found.exchange_port)
        self.link_port, self.weights_port = found.link_port, found.weights_port


class Roster:
    """Lives in the supervisor's event loop.

    seats: of the epoch in use, or of the first one that is being built, in rising order
    starting: of processes that no epoch has yet
    """

    def __init__(self) -> None:
        self.seats: list[Seat] = []
        self.starting: list[Seat] = []
        self._incarnations: Counter[int] = Counter()

    def __iter__(self) -> Iterator[Seat]:
        """All of them."""
        return iter((*self.seats, *self.starting))

    @property
    def live(self) -> list[Seat]:
        """Seats of the epoch whose process is not known to be dead."""
        return [seat for seat in self.seats if seat.state != "dead"]

    @property
    def bringers(self) -> list[Seat]:
        """Seats of the epoch that bring tokens."""
        return [seat for seat in self.seats if seat.member.runs_attention]

    def sits(self, seat: Seat) -> bool:
        """Whether a seat is in the epoch, and not known to be dead."""
        return seat in self.seats and seat.state != "dead"

    def others(self, seat: Seat) -> list[WorkerHost]:
        """Ports of the other ranks, for one that rings their bells."""
        return [other.port for other in self.seats if other is not seat]

    def newcomer(self, rank: int, role: Role) -> Member:
        """The next process for a seat that had one."""
        self._incarnations[rank] += 1
        return Member(rank, role, self._incarnations[rank])
