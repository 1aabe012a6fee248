"""Epochs: runs the epoch machine for a cell. Calls the ranks as it says and brings it what came of that."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from cluster.state.roster import Seat
from experts.background import join_task
from experts.epoch.machine import (
    Action,
    Began,
    Broke,
    Build,
    Built,
    Drop,
    Dropped,
    Enter,
    EpochMachine,
    Event,
    Limits,
    Look,
    Lost,
    NotBuilt,
    Propose,
    Void,
)
from experts.worker.deadlines import DEADLINES
from experts.worker.remote import Gone

_POLL = 0.01  # s between two looks at which epoch a rank is in
BuildEnd = Callable[[Seat, int], Awaitable[None]]  # has a rank build its end of the group of epoch n


class ChangeFailed(Exception):
    """An attempt to enter an epoch ended without it; the text says why. silent: ranks that did not answer when they were
    asked to forget it."""

    def __init__(self, void: Void) -> None:
        super().__init__(f"epoch {void.number} was not entered: {void.why}")
        self.silent = void.silent
        self._void = void

    def __reduce__(self) -> tuple[type["ChangeFailed"], tuple[Void]]:
        return (type(self), (self._void,))  # crosses processes whole


class Epochs:
    """Lives in the supervisor's event loop; one attempt at a time, further ones wait."""

    def __init__(self) -> None:
        limits = Limits(DEADLINES.needed, DEADLINES.build, DEADLINES.enter, DEADLINES.suspend)
        self._machine = EpochMachine(limits)
        self._turn = asyncio.Lock()
        self._news: asyncio.Queue[Event] = asyncio.Queue()

    @property
    def number(self) -> int:
        """The newest that an attempt had."""
        return self._machine.number

    def lost(self, seat: Seat) -> None:
        """A rank's process is gone: an attempt under way that needs it is void."""
        if self._machine.attempt is not None:
            self._news.put_nowait(Lost(seat.rank))

    def broke(self) -> None:
        """The epoch in use broke: a planned change of it is void."""
        self._news.put_nowait(Broke())

    async def enter(self, members: Sequence[Seat], leaving: Sequence[Seat], planned: bool, build: BuildEnd) -> int:
        """Bring ranks into the next epoch; its number. Raises ChangeFailed.

        members: of that epoch
        leaving: of the running one, which a planned change goes on without
        planned: an epoch runs meanwhile
        """
        async with self._turn:
            seats = {seat.rank: seat for seat in (*members, *leaving)}
            attempt = _Attempt(seats, build)
            proposal = Propose(frozenset(seat.rank for seat in members), planned, frozenset(seats))
            self._news = attempt.news  # what comes of earlier attempts says nothing here
            dead = [Lost(seat.rank) for seat in seats.values() if seat.state == "dead"]
            try:
                actions = self._tick([proposal, *dead])
                while True:
                    for action in actions:
                        if isinstance(action, Enter):
                            return action.number
                        if isinstance(action, Void):
                            raise ChangeFailed(action)
                        attempt.do(action)
                    actions = self._tick(await self._events())
            finally:
                self._machine.attempt = None  # where this was cancelled
                attempt.end()

    async def _events(self) -> list[Event]:
        """What has happened, at once where something has, else when something does or a deadline passes."""
        attempt = self._machine.attempt
        assert attempt is not None, "an attempt is under way"
        left = attempt.deadline - asyncio.get_running_loop().time()
        try:
            events = [await asyncio.wait_for(self._news.get(), max(left, 0.0))]
        except TimeoutError:
            events = []
        while not self._news.empty():
            events.append(self._news.get_nowait())
        return events

    def _tick(self, events: Sequence[Event]) -> list[Action]:
        return self._machine.tick(asyncio.get_running_loop().time(), events)


class _Attempt:
    """The calls of one attempt. Each ends in an event, if it ends."""

    def __init__(self, seats: dict[int, Seat], build: BuildEnd) -> None:
        self._seats, self._build = seats, build
        self.news: asyncio.Queue[Event] = asyncio.Queue()
        self._calls: list[asyncio.Task[None]] = []

    def do(self, action: Action) -> None:
        """Begin what the machine says."""
        match action:
            case Build(number=number, ranks=ranks):
                for rank in ranks:
                    self._begin(f"epoch {number} of rank {rank}", self._build_end(number, rank))
            case Look(number=number, ranks=ranks):
                self._begin(f"first step of epoch {number}", self._look(number, ranks))
            case Drop(number=number, ranks=ranks):
                for rank in ranks:
                    self._begin(f"end of epoch {number} for rank {rank}", self._drop(number, rank))

    def end(self) -> None:
        """Wait for nothing any more."""
        for call in self._calls:
            call.cancel()

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._calls.append(join_task(name, work))

    async def _build_end(self, number: int, rank: int) -> None:
        try:
            await self._build(self._seats[rank], number)
        except Gone:
            self.news.put_nowait(Lost(rank))
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self.news.put_nowait(NotBuilt(number, rank, lines[-1]))
        else:
            self.news.put_nowait(Built(number, rank))

    async def _look(self, number: int, ranks: frozenset[int]) -> None:
        left = {rank: self._seats[rank] for rank in ranks}
        bell = next(seat for seat in left.values() if seat.member.runs_attention)
        while left:
            asked = list(left.values())
            calls = [bell.port.nudge(), *(seat.port.epoch() for seat in asked)]
            _, *epochs = await asyncio.gather(*calls, return_exceptions=True)
            for seat, epoch in zip(asked, epochs, strict=True):
                if isinstance(epoch, Gone):
                    del left[seat.rank]
                    self.news.put_nowait(Lost(seat.rank))
                elif epoch == number:
                    del left[seat.rank]
                    self.news.put_nowait(Began(number, seat.rank))
            await asyncio.sleep(_POLL)

    async def _drop(self, number: int, rank: int) -> None:
        try:
            epoch = await self._seats[rank].port.drop_epoch(number)
        except Exception:  # who gives no answer is missed when the time is over
            return
        self.news.put_nowait(Began(number, rank) if epoch == number else Dropped(number, rank))
