"""WorkerHost: a worker with the verbs by which others call it. Its event loop only passes messages; work runs in threads."""

import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from experts.dump import ProcessDump, dump_here
from experts.epoch.membership import EpochRecord
from experts.errors import RankLost
from experts.exchange.doorbell import Moment
from experts.exchange.split import SplitPolicy
from experts.placement import Placement
from experts.slots.loads import StepLoads
from experts.slots.migrate import Move, Staged
from experts.threads import in_own_thread
from experts.worker.deadlines import DEADLINES
from experts.worker.lease import Lease
from experts.worker.remote import tell
from experts.worker.worker import RankReport, Standing, Worker, WorkerOrder

_SWITCH_INTERVAL = 5e-4  # s that another thread's Python may hold up the step thread; the default is 5 ms


@dataclass(frozen=True, slots=True)
class Loaded:
    """A worker that has its weights.

    link_port: where ingresses connect, 0 = nowhere
    weights_port: where peers fetch experts, 0 = nowhere
    exchange_port: where peers call for tokens' links, 0 = nowhere
    read: bytes
    """

    pid: int
    link_port: int
    weights_port: int
    exchange_port: int
    read: int


@dataclass(frozen=True, slots=True)
class Broke:
    """What a rank knows of why its epoch broke. died: rank and incarnation of a process that is dead."""

    reason: str
    died: tuple[int, int] | None = None


class WorkerHost:
    """Made inside an event loop. Every `async def` is a verb."""

    def __init__(self, order: WorkerOrder) -> None:
        self._order = order
        self._loop = asyncio.get_event_loop()
        self._worker: Worker | None = None  # until it has loaded
        self._peers: list[WorkerHost] = []
        self._read = (0, 0)
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._broken: asyncio.Future[Broke] = self._loop.create_future()
        self._unnamed: asyncio.TimerHandle | None = None  # what happens where nobody says what follows
        self._led = False  # the supervisor has said that something follows
        self._news = asyncio.Event()

    @property
    def worker(self) -> Worker:
        """For callers of this process."""
        assert self._worker is not None, "a worker loads first"
        return self._worker

    async def load(self) -> Loaded:
        """Read the rank's weights. Raises UserError."""
        worker = await self._order.load(self._note)
        worker.on_steps = lambda: self._loop.call_soon_threadsafe(self._tell_steps)
        self._worker = worker
        return Loaded(os.getpid(), worker.link_port, worker.weights_port, worker.exchange_port, self._read[0])

    async def progress(self) -> tuple[int, int]:
        """(bytes loaded, bytes in all)."""
        return self._read

    async def join(self, record: EpochRecord, peers: list["WorkerHost"]) -> None:
        """Take the seat in an epoch and start its step loop. peers: ports of the ranks whose bells it rings."""
        self._peers = peers
        await asyncio.to_thread(self.worker.join, record, self._ring, self._end, self._break)

    async def meet(self, peers: list["WorkerHost"]) -> None:
        """Ring the bells of these ranks from now on."""
        self._peers = peers

    async def prepare(self, record: EpochRecord) -> None:
        """Build the next epoch's group beside the running one, and take it as soon as all members have it.

        A rank that is not in the record ends its loop then. Raises RankLost when the group did not come together.
        """
        await asyncio.to_thread(in_own_thread, lambda: self.worker.prepare(record))

    async def drop_epoch(self, epoch: int) -> int:
        """Forget an epoch that was given up; the epoch that this rank is in. Raises RankLost."""
        return await asyncio.to_thread(in_own_thread, lambda: self.worker.drop_epoch(epoch))

    async def broken(self) -> Broke:
        """Waits until the epoch breaks; its step thread waits then for `recover` or `leave`."""
        return await asyncio.shield(self._broken)

    async def suspend(self, given_up: int) -> Standing:
        """Break the epoch, if it has not broken, and wait until the step thread waits. Raises RankLost where it does not.

        given_up: the newest epoch's number; this rank enters none up to it any more
        """
        self._led = True
        if self._unnamed is not None:
            self._unnamed.cancel()
        return await asyncio.to_thread(in_own_thread, lambda: self.worker.suspend(given_up, DEADLINES.suspend - 1))

    async def recover(
        self, record: EpochRecord, base: int, placement: Placement, policy: SplitPolicy, peers: list["WorkerHost"]
    ) -> None:
        """Enter an epoch after `suspend`: see Exchange.recover. peers: ports of the ranks whose bells it rings.

        Raises RankLost when the group did not come together; the step thread goes on waiting then.
        """
        self._peers = peers
        broken = self._broken = self._loop.create_future()  # before steps run, which may break at once
        self._led = False
        try:
            await asyncio.to_thread(in_own_thread, lambda: self.worker.recover(record, base, placement, policy))
        except BaseException:
            if self._broken is broken:  # else a later call leads
                self._led = True
            raise

    async def epoch(self) -> int:
        """Of the newest step."""
        return self._worker.epoch if self._worker is not None else 0

    async def leave(self, reason: str) -> None:
        """Drop the epoch's group; what waits for steps ends with `reason`."""
        self.worker.leave(reason)
        self._resolve(reason)

    async def ended(self) -> str:
        """Waits until the step loop ends; empty when it was asked to, else why."""
        return await asyncio.shield(self._ended)

    async def keep(self) -> None:
        """The supervisor's sign of life."""

    async def ring(self, wanted: Moment) -> None:
        """Some rank wants a step run."""
        self.worker.bell.ring(wanted)

    async def nudge(self) -> None:
        """Have the group run a step, be it an empty one."""
        if (joined := self.worker.joined) is not None:
            joined.body.nudge()

    async def stop(self) -> None:
        """Ask the whole group to end its loops after the next step."""
        if (joined := self.worker.joined) is not None:
            joined.body.stop()

    async def stepped(self) -> None:
        """Waits until `steps` has something, so that an idle rank need not be asked; a later call ends an earlier one."""
        self._news.set()
        self._news = news = asyncio.Event()
        if not self.worker.has_steps:
            await news.wait()

    async def steps(self) -> list[StepLoads]:
        """Loads of the steps that ended since the last call."""
        return await asyncio.to_thread(self.worker.steps)

    async def version(self) -> int:
        """Placement version of the newest step."""
        return self.worker.version

    async def stage(self, moves: Sequence[Move], bandwidth: float) -> list[Staged]:
        """Fetch experts beside the running steps. bandwidth: bytes/s. Failures are in the answer, not raised."""
        return await asyncio.to_thread(in_own_thread, lambda: self.worker.stage(moves, bandwidth))

    async def offer(self, placement: Placement, policy: SplitPolicy | None = None) -> None:
        """Have a newer placement used as soon as all ranks offer it. Raises MoveFailed."""
        await asyncio.to_thread(in_own_thread, lambda: self.worker.offer(placement, policy))

    async def drop_staged(self) -> None:
        """Forget what was staged and not offered."""
        self.worker.drop_staged()

    async def report(self) -> RankReport:
        """Running totals."""
        return self.worker.report()

    async def dump(self, name: str) -> ProcessDump:
        """What this process is doing; `name` is shown."""
        return dump_here(name, self._worker.moment() if self._worker is not None else None)

    def kill(self) -> None:
        """What is left where a process would be killed: the group is dropped, and nothing of it is used again."""
        if self._worker is not None:
            self._worker.leave("ended")
            self._worker.close()

    def _note(self, done: int, total: int) -> None:
        self._read = (done, total)

    def _tell_steps(self) -> None:
        self._news.set()

    def _ring(self, wanted: Moment) -> None:
        """From any thread: the own bell at once, the peers' by a call each that nobody waits for."""
        self.worker.bell.ring(wanted)
        self._loop.call_soon_threadsafe(self._ring_peers, wanted)

    def _ring_peers(self, wanted: Moment) -> None:
        for peer in self._peers:
            tell(peer.ring(wanted))

    def _end(self, reason: str) -> None:
        """The steps ended; from the step thread."""
        self._loop.call_soon_threadsafe(self._resolve, reason)
        if reason:
            self._loop.call_soon_threadsafe(self._await_name, reason)

    def _break(self, lost: RankLost) -> None:
        """The epoch broke; from the step thread, which waits from now on."""
        self._loop.call_soon_threadsafe(self._tell_break, lost)

    def _tell_break(self, lost: RankLost) -> None:
        if not self._broken.done():
            self._broken.set_result(Broke(str(lost), lost.died))
        self._await_name(str(lost))

    def _await_name(self, reason: str) -> None:
        """The supervisor knows who died and says what follows; if it does not, say what was seen."""
        if self._led:
            return
        self._unnamed = self._loop.call_later(DEADLINES.named, self.worker.leave, reason)

    def _resolve(self, reason: str) -> None:
        if not self._ended.done():
            self._ended.set_result(reason)


class WorkerProcess(WorkerHost):
    """A worker in a process of its own, which ends when nobody keeps it: the Ray actor of every rank."""

    def __init__(self, order: WorkerOrder) -> None:
        sys.setswitchinterval(_SWITCH_INTERVAL)
        super().__init__(order)
        self._lease = Lease(lambda: os._exit(1), DEADLINES.lease)

    async def keep(self) -> None:
        self._lease.renew()
