"""Recovery: from a lost rank with experts to the next epoch, in phases.

Each is an event and a line of `status`:

1. hold: every survivor breaks its epoch and waits, with all its sequences
2. placement: the newest that any of them used; what the lost ranks held is masked where there are other copies
3. load: where there is no other copy, new processes take the lost seats and read what they held; streams wait
4. epoch: all build the group, and the step that broke is run again

A rank that is lost meanwhile sends it back to phase 1. Then, beside the traffic, a seat that was masked gets a new process,
which joins by a planned change and is given what the seat held.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from cluster.control.epochs import ChangeFailed, Epochs
from cluster.control.mover import InUse
from cluster.control.processes import end_process_of
from cluster.state.lifecycle import Lifecycle
from cluster.state.roster import Roster, Seat
from experts.epoch.membership import EpochRecord, Member
from experts.exchange.split import SplitPolicy
from experts.placement import Placement
from experts.worker import remote
from experts.worker.remote import Gone
from experts.worker.worker import Standing

log = logging.getLogger(__name__)
_PHASES = {1: "hold", 2: "placement", 3: "load", 4: "epoch"}
_TRIES = 5  # attempts to enter an epoch without a further loss
_HOUR = 3600.0
_FREE_DEATHS = 2  # of a seat within an hour, without a wait before it gets another process
_FIRST_WAIT, _LONGEST_WAIT = 10.0, 300.0  # s


class Unrecoverable(Exception):
    """The others can't go on; the text says why."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """The epoch after a loss. masked: lost seats that nobody has, with what they held under `base`."""

    epoch: int
    seats: list[Seat]
    placement: Placement
    policy: SplitPolicy
    masked: tuple[int, ...]
    base: Placement


@dataclass(frozen=True, slots=True)
class Starter:
    """How processes come to a seat.

    started: a process that loads nothing yet
    load: has it read its weights
    """

    started: Callable[[Member, Placement, SplitPolicy], Seat]
    load: Callable[[Seat], Awaitable[None]]
    record: Callable[[int, Sequence[Seat], int, bool], EpochRecord]  # number, members, placement version, planned


class Recovery:
    """One loss at a time; see the module.

    happened: takes events
    changed: called when `life` has changed
    """

    def __init__(
        self, life: Lifecycle, roster: Roster, epochs: Epochs, starter: Starter,
        happened: Callable[[str, str], None], changed: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._life, self._roster, self._epochs, self._starter = life, roster, epochs, starter
        self._happened, self._changed = happened, changed
        self._deaths: dict[int, deque[float]] = {}

    def note_death(self, rank: int) -> None:
        """A seat has lost its process."""
        self._deaths.setdefault(rank, deque()).append(time.monotonic())

    def wait_of(self, rank: int) -> float:
        """Seconds before a seat gets its next process: none at first, longer and longer where its processes keep dying."""
        deaths = self._deaths.get(rank, deque())
        while deaths and deaths[0] < time.monotonic() - _HOUR:
            deaths.popleft()
        extra = len(deaths) - _FREE_DEATHS
        return 0.0 if extra <= 0 else min(_FIRST_WAIT * 2 ** (extra - 1), _LONGEST_WAIT)

    @property
    def lost(self) -> tuple[int, ...]:
        """Seats of the epoch whose process is gone."""
        return tuple(seat.rank for seat in self._roster.seats if seat.state == "dead")

    async def run(self, why: str, in_use: InUse) -> Recovered:
        """Go through the phases until steps run again. in_use: what the balancer knows. Raises Unrecoverable."""
        began, tries = time.monotonic(), 0
        made_from: dict[int, int] = {}  # version of a placement that an attempt used: of the one that it masks
        while True:
            await self._phase(1, why, "every rank stops")
            standings = await self._hold()
            if standings is None:
                continue
            base, number = _base(standings, in_use, made_from)
            policy = in_use.policy_of(base.version)
            lost = self.lost
            covered = base.covers_without(lost)
            made_from[number] = base.version
            await self._phase(2, why, f"from placement {base.version}")
            newcomers: list[Seat] = []
            if covered:
                placement = base.without(lost, number)
            else:
                placement = _numbered(base, number)
                names = ", ".join(map(str, lost))
                await self._phase(3, why, f"a new process reads what only rank {names} held; requests wait")
                loaded = await self._replace(lost, placement, policy)
                if loaded is None:
                    continue
                newcomers = loaded
            live = self._roster.live
            if len(live) + len(lost) != len(self._roster.seats):  # another one was lost while a process loaded
                self._give_back(newcomers)
                continue
            members = sorted((*live, *newcomers), key=lambda seat: seat.rank)
            await self._phase(4, why, f"{len(members)} ranks meet")
            try:
                epoch = await self._enter(members, live, base.version, placement, policy)
            except ChangeFailed as failed:
                self._happened("epoch", str(failed))
                self._give_back(newcomers)
                tries += 1
                if tries == _TRIES:
                    raise Unrecoverable(f"{why}; {tries} attempts to go on failed, the last: {failed}") from failed
                continue
            for seat in newcomers:
                seat.state = "ready"
            self._roster.seats = members
            seconds = time.monotonic() - began
            names = ", ".join(map(str, lost))
            what = "with all ranks" if not lost else f"without rank {names}" if covered else "with new processes"
            self._happened(
                "recovered", f"epoch {epoch} {what}, {len(members)} ranks, {seconds:.2f} s after the loss was known"
            )
            return Recovered(epoch, members, placement, policy, lost if covered else (), base)

    async def _phase(self, number: int, why: str, text: str) -> None:
        self._happened("recovery", f"phase {number} ({_PHASES[number]}): {text}")
        if not self._life.recovers(f"{why}; phase {number} of {len(_PHASES)} ({_PHASES[number]}): {text}"):
            raise Unrecoverable(self._life.reason)
        await self._changed()

    async def _hold(self) -> list[Standing] | None:
        """Where every survivor stands; None where another one was found lost."""
        live = self._roster.live
        got = await asyncio.gather(*(seat.port.suspend(self._epochs.number) for seat in live), return_exceptions=True)
        standings: list[Standing] = []
        for seat, found in zip(live, got, strict=True):
            if isinstance(found, Standing):
                standings.append(found)
                continue
            log.warning("%s does not hold: %r", seat.title, found)
            if not isinstance(found, Gone):
                end_process_of(seat)
            seat.state = "dead"
            self.note_death(seat.rank)
            if seat.member.runs_attention:
                raise Unrecoverable(f"{seat.title} was lost")
        return standings if len(standings) == len(live) else None

    async def _replace(self, lost: Sequence[int], placement: Placement, policy: SplitPolicy) -> list[Seat] | None:
        """New processes on lost seats, loaded; None where one of them died. Raises Unrecoverable."""
        if wait := max(map(self.wait_of, lost)):
            self._happened(
                "recovery", f"rank {', '.join(map(str, lost))} keeps dying: the next process in {wait:.0f} s"
            )
            await asyncio.sleep(wait)
        seats = [self._starter.started(self._roster.newcomer(rank, "expert"), placement, policy) for rank in lost]
        self._roster.starting += seats
        try:
            got = await asyncio.gather(*map(self._starter.load, seats), return_exceptions=True)
        except BaseException:
            self._give_back(seats)
            raise
        failed = [(seat, error) for seat, error in zip(seats, got, strict=True) if error is not None]
        if not failed:
            return seats
        self._give_back(seats)
        for seat, error in failed:
            if not isinstance(error, Gone):
                raise Unrecoverable(f"a new process for rank {seat.rank} did not load: {error}")
            self.note_death(seat.rank)
        return None

    def _give_back(self, newcomers: Sequence[Seat]) -> None:
        for seat in newcomers:
            if seat in self._roster.starting:
                self._roster.starting.remove(seat)
            remote.kill(seat.port)

    async def _enter(
        self, members: list[Seat], survivors: list[Seat], base: int, placement: Placement, policy: SplitPolicy
    ) -> int:
        """All into the next epoch. Raises ChangeFailed."""

        async def build(seat: Seat, number: int) -> None:
            record = self._starter.record(number, members, placement.version, True)
            if seat in survivors:
                peers = [other.port for other in members if other is not seat] if seat.member.runs_attention else []
                await seat.port.recover(record, base, placement, policy, peers)
            else:
                await seat.port.join(record, [])

        epoch = await self._epochs.enter(members, [], False, build)
        for seat in members:
            if seat in self._roster.starting:
                self._roster.starting.remove(seat)
        return epoch


def _base(standings: Sequence[Standing], in_use: InUse, made_from: dict[int, int]) -> tuple[Placement, int]:
    """The newest placement that any survivor used, which all have offered, and a version that nobody ever offered."""
    used = max(made_from.get(standing.used, standing.used) for standing in standings)
    found = in_use.placements.get(used)
    if found is None:
        raise Unrecoverable(f"placement {used} was in use, known are {sorted(in_use.placements)}")
    return found, max(in_use.newest, *made_from, *(standing.newest for standing in standings)) + 1


def _numbered(placement: Placement, version: int) -> Placement:
    return placement.without((), version)
