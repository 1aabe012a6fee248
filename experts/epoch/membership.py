"""Membership: who sits on which seat in an epoch. Pure data, made of built-in types."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["attention", "expert", "both"]
HERE = "127.0.0.1"  # the address of every rank and of the supervisor, which share one machine


@dataclass(frozen=True, slots=True)
class Member:
    """One seat of an epoch.

    rank: the seat's number, which never changes
    incarnation: which process sits there
    exchange_port: where its links are called, 0 = it has none
    """

    rank: int
    role: Role
    incarnation: int = 0
    node_ip: str = HERE
    pid: int = 0
    exchange_port: int = 0

    @property
    def holds_experts(self) -> bool:
        """Whether this seat has slots, so that tokens may be sent to it."""
        return self.role != "attention"

    @property
    def runs_attention(self) -> bool:
        """Whether this seat brings tokens of its own."""
        return self.role != "expert"


@dataclass(frozen=True, slots=True)
class Membership:
    """The live seats of one epoch, in rising order of rank; a member's index here is its number in the group."""

    epoch: int
    members: tuple[Member, ...]
    placement_version: int = 0

    def __post_init__(self) -> None:
        ranks = [member.rank for member in self.members]
        assert ranks == sorted(set(ranks)), f"seats must be distinct and rising: {ranks}"

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.members)

    def seats(self, rank: int) -> bool:
        """Whether `rank` is a member."""
        return any(member.rank == rank for member in self.members)

    def index(self, rank: int) -> int:
        """The number in the group of the member on seat `rank`."""
        for index, member in enumerate(self.members):
            if member.rank == rank:
                return index
        raise KeyError(f"seat {rank} is not in epoch {self.epoch}: {[member.rank for member in self.members]}")


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """All that a rank needs to take its seat in an epoch: who is in it, and where its store is.

    timeout, connect: s, of an operation, and for all members to connect once all are there
    planned: the epoch before runs on until all members have this one, so nobody need be rung for its first step.
    """

    membership: Membership
    store_host: str
    store_port: int
    timeout: float
    planned: bool = False
    connect: float = 30.0
