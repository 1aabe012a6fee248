"""A cell over ranks that only play their part, in virtual time and under a seed: calls are delayed and reordered, ranks die.

The cell, its epochs, recovery, watch and mover are production's, and so is the agreement of the ranks' headers; a rank here
has no weights and no sockets. What must never be is noted in `World.wrong`.
"""

import asyncio
import random
from collections.abc import Awaitable
from typing import Any, cast

from cluster.control.cell import Cell
from cluster.control.orders import Orders
from cluster.plan import ServePlan
from cluster.state.events import EventLog
from experts.background import join_task
from experts.epoch.agreement import Astray, GoTo, Row, agree
from experts.epoch.membership import EpochRecord
from experts.errors import RankLost
from experts.exchange.split import SplitPolicy
from experts.placement import Placement
from experts.slots.migrate import Move, Staged
from experts.worker import remote
from experts.worker.host import Broke, Loaded, WorkerHost
from experts.worker.worker import Standing, WorkerOrder


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time goes on only where nothing is left to do, and then at once to the next timer."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0].when()) + 1e-9  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class Group:
    """What members of an epoch meet and send headers in. A member that is gone or has left breaks it."""

    def __init__(self, world: "World", members: frozenset[int]) -> None:
        self.world, self.members = world, members
        self.came: set[int] = set()
        self.gone: set[int] = set()
        self._rows: dict[int, dict[int, Row]] = {}
        self._changed = asyncio.Event()

    def leave(self, rank: int) -> None:
        self.gone.add(rank)
        self._wake()

    async def meet(self, rank: int, number: int) -> None:
        """Until all have come. Raises RankLost."""
        self.came.add(rank)
        self._wake()
        try:
            async with asyncio.timeout(self.world.rng.choice([2.0, 10.0])):
                while not self.members <= self.came:
                    await self._change()
        except TimeoutError:
            self.leave(rank)
            raise RankLost(number, -1, "the group did not come together") from None

    async def gather(self, rank: int, step: int, row: Row) -> list[Row]:
        """Everyone's row; not all hear of a header that broke. Raises RankLost."""
        rows = self._rows.setdefault(step, {})
        rows[rank] = row
        self._wake()
        while len(rows) < len(self.members):
            if self.gone:
                raise RankLost(row.epoch, step, f"lost {sorted(self.gone)}")
            await self._change()
        await asyncio.sleep(self.world.rng.choice([0.0, 0.001, 0.05]))
        if self.gone and self.world.rng.random() < 0.5:
            raise RankLost(row.epoch, step, f"lost {sorted(self.gone)}")
        return [rows[member] for member in sorted(self.members)]

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self) -> None:
        await self._changed.wait()


class SimulatedRank:
    """One process on a seat: the verbs of a WorkerHost that a cell calls."""

    def __init__(self, world: "World", order: WorkerOrder) -> None:
        self.world, self.seat = world, order.seat
        self.rank = order.seat.rank
        self.end = asyncio.Event()
        self.epoch_number, self.step = 0, -1
        self.used = self.newest = order.placement.version
        self.held_versions = {order.placement.version}
        self.content = order.placement.version  # what its slots hold; a masked placement has another version
        self.gave_up: set[int] = set()
        self.holding = False
        self._dropped = self._given_up = 0
        self._group: Group | None = None
        self._next: EpochRecord | None = None
        self._promised = asyncio.Event()
        self._promised.set()
        self._resumed, self._broken = asyncio.Event(), asyncio.get_running_loop().create_future()
        self._loop: asyncio.Task[None] | None = None
        self.led = False

    @property
    def at(self) -> tuple[int, int]:
        """Its newest step."""
        return self.epoch_number, self.step

    async def load(self) -> Loaded:
        await asyncio.sleep(self.world.rng.uniform(0.1, 5.0))
        return Loaded(0, 0, 0, 0, 0)

    async def join(self, record: EpochRecord, peers: list[WorkerHost]) -> None:
        await self.world.group(record).meet(self.rank, record.membership.epoch)
        self._enter(record)
        self._loop = join_task(f"steps of {self.rank}", self._steps())

    async def prepare(self, record: EpochRecord) -> None:
        member = record.membership.seats(self.rank)
        if member:
            await self.world.group(record).meet(self.rank, record.membership.epoch)
        if record.membership.epoch <= max(self._dropped, self.epoch_number):
            raise RankLost(record.membership.epoch, -1, "given up meanwhile")
        self._next = record

    async def drop_epoch(self, epoch: int) -> int:
        self._dropped = max(self._dropped, epoch)
        await self._promised.wait()
        self._next = None
        if self.epoch_number != epoch:
            self.gave_up.add(epoch)
        return self.epoch_number

    async def suspend(self, given_up: int) -> Standing:
        self._given_up = max(self._given_up, given_up)
        self._close()
        while not self.holding:
            await asyncio.sleep(0.01)
        return Standing(self.epoch_number, self.used, self.newest)

    async def recover(
        self, record: EpochRecord, base: int, placement: Placement, policy: SplitPolicy, peers: list[WorkerHost]
    ) -> None:
        self.world.check(self.holding, f"rank {self.rank} is to recover while its steps run")
        await self.world.group(record).meet(self.rank, record.membership.epoch)
        if record.membership.epoch <= self._given_up:
            raise RankLost(record.membership.epoch, -1, "given up meanwhile")
        self.world.check(self.holding, f"rank {self.rank} recovers while its steps run")
        if base > self.used:
            self.world.check(base in self.held_versions, f"rank {self.rank} does not hold placement {base}")
        else:
            right = base in (self.used, self.content)
            self.world.check(right, f"rank {self.rank} is sent back from placement {self.used} to {base}")
        self.content = base
        self.world.check(placement.version > self.newest, f"placement {placement.version} was offered before")
        self.held_versions, self._next = {placement.version}, None
        self.used = self.newest = placement.version
        self._broken = asyncio.get_running_loop().create_future()
        self._enter(record)
        self.holding = False
        self._resumed.set()

    async def offer(self, placement: Placement, policy: SplitPolicy | None = None) -> None:
        if placement.version <= self.newest:
            raise AssertionError(f"placement {placement.version} is old")  # as a rank's exchange does
        self.held_versions.add(placement.version)
        self.newest = max(self.newest, placement.version)

    async def stage(self, moves: list[Move], bandwidth: float) -> list[Staged]:
        await asyncio.sleep(self.world.rng.uniform(0, 1))
        return [Staged(move, b"", "", 0.0, "") for move in moves]

    async def drop_staged(self) -> None: ...
    async def meet(self, peers: list[WorkerHost]) -> None: ...
    async def nudge(self) -> None: ...
    async def keep(self) -> None: ...
    async def stop(self) -> None: ...

    async def steps(self) -> list[Any]:
        return []

    async def version(self) -> int:
        return self.used

    async def epoch(self) -> int:
        return self.epoch_number

    async def stepped(self) -> None:
        await asyncio.Event().wait()

    async def ended(self) -> str:
        return str(await asyncio.Event().wait())

    async def broken(self) -> Broke:
        return Broke(str(await asyncio.shield(self._broken)))

    async def leave(self, reason: str) -> None:
        self._close()

    def kill(self) -> None:
        """The process is gone."""
        self.end.set()
        self._close()
        if self._loop is not None:
            self._loop.cancel()

    def _close(self) -> None:
        self._next = None
        if self._group is not None:
            self._group.leave(self.rank)

    def _enter(self, record: EpochRecord) -> None:
        number = record.membership.epoch
        self.world.check(number not in self.gave_up, f"rank {self.rank} enters epoch {number}, which it gave up")
        self.world.check(
            number > self.epoch_number, f"rank {self.rank} goes from epoch {self.epoch_number} to {number}"
        )
        who = tuple((member.rank, member.incarnation) for member in record.membership.members)
        known = self.world.entered.setdefault(number, who)
        self.world.check(known == who, f"epoch {number} has members {known} and {who}")
        self._group, self.epoch_number, self.step = self.world.group(record), number, -1

    async def _steps(self) -> None:
        while True:
            try:
                while await self._one_step():
                    await asyncio.sleep(0.02)
                return
            except RankLost as lost:
                self._close()
                self.holding = True
                self._resumed.clear()
                if not self._broken.done():
                    self._broken.set_result(str(lost))
                await self._resumed.wait()

    async def _one_step(self) -> bool:
        assert self._group is not None
        ready = self.epoch_number if self._next is None else self._next.membership.epoch
        if self._next is not None:
            self._promised.clear()
        step = self.step + 1
        try:
            row = Row(self.epoch_number, step, self.newest, 1, 0, 0, ready)
            rows = await self._group.gather(self.rank, step, row)
            answer = agree(rows, self.epoch_number, step, 64)
            if isinstance(answer, Astray):
                raise RankLost(self.epoch_number, step, "astray")
            if isinstance(answer, GoTo):
                following = self._next
                self.world.check(following is not None, f"rank {self.rank} has dropped the epoch that all go to")
                if following is None or not following.membership.seats(self.rank):
                    return False
                self._next = None
                old = self._group
                self._enter(following)
                old.leave(self.rank) if self.world.rng.random() < 0.5 else None
                return True
        finally:
            self._promised.set()
        self.step = step
        self.world.check(answer.version in self.held_versions, f"placement {answer.version} is not on rank {self.rank}")
        if answer.version != self.used:
            self.used = self.content = answer.version
        return True


class SimulatedOrders(Orders):
    """Ranks that meet without a store."""

    exchange = "local"


class World:
    """One history. wrong: what must never be, and was."""

    def __init__(self, plan: ServePlan, seed: int) -> None:
        self.seed, self.rng = seed, random.Random(seed)
        self.wrong: list[str] = []
        self.entered: dict[int, tuple[tuple[int, int], ...]] = {}
        self.ranks: dict[int, SimulatedRank] = {}
        self._groups: dict[tuple[int, tuple[tuple[int, int], ...]], Group] = {}
        self.events = EventLog()
        self.cell = Cell(SimulatedOrders(plan), self._spawn, self.events, self._changed)

    def check(self, right: bool, what: str) -> None:
        if not right:
            self.wrong.append(what)

    def group(self, record: EpochRecord) -> Group:
        members = record.membership.members
        key = (record.membership.epoch, tuple((member.rank, member.incarnation) for member in members))
        if key not in self._groups:
            self._groups[key] = Group(self, frozenset(member.rank for member in members))
        return self._groups[key]

    def kill(self, rank: int) -> None:
        """SIGKILL."""
        self.ranks[rank].kill()

    async def _changed(self) -> None: ...

    def _spawn(self, order: WorkerOrder) -> WorkerHost:
        rank = self.ranks[order.seat.rank] = SimulatedRank(self, order)

        def send(verb: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Awaitable[Any]:
            return join_task(verb, self._call(rank, verb, arguments, named))

        return cast(WorkerHost, remote._Port(WorkerHost, send, (remote.here, (rank,))))

    async def _call(self, rank: SimulatedRank, verb: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """A call that takes its time there and back, and ends as the process does."""

        async def carried() -> Any:
            await asyncio.sleep(self.rng.choice([0.0, 0.002, 0.02, 0.3]))
            found = await getattr(rank, verb)(*arguments, **named)
            await asyncio.sleep(self.rng.choice([0.0, 0.002, 0.02]))
            return found

        work, end = asyncio.ensure_future(carried()), asyncio.ensure_future(rank.end.wait())
        try:
            await asyncio.wait({work, end}, return_when=asyncio.FIRST_COMPLETED)
            if rank.end.is_set():
                await asyncio.sleep(self.rng.choice([0.0, 0.05, 1.0]))
                raise remote.Gone("killed")
            return work.result()
        finally:
            work.cancel()
            end.cancel()
