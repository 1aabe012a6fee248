"""GuardedGroup: a group whose every failure is a RankLost, and from which nothing comes once it was closed.

Knows blocks and stamps, no tokens.
"""

import threading
import time

import torch

from experts.dump import StepMoment
from experts.epoch.agreement import Row
from experts.epoch.membership import Membership
from experts.errors import RankLost
from experts.exchange.base import ExchangeCounters
from experts.exchange.block import Blocks, Stamp, read_stamp
from experts.exchange.epoch_group import EpochGroup
from experts.exchange.links.group import LinkGroup
from experts.exchange.transport import Group, Pending


class GuardedGroup(EpochGroup):
    """The collective group of one epoch. Operations come from the step thread, `close` from any.

    links: between the same members, on which headers travel; None: they are gathered by the group
    """

    def __init__(
        self, group: Group, membership: Membership, counters: ExchangeCounters, links: LinkGroup | None = None
    ) -> None:
        assert group.size == membership.size, (group.size, membership.size)
        super().__init__(membership, group.index)
        self.device = group.device
        self.counters, self.links = counters, links
        self._group = group
        self._lock = threading.Lock()
        self._closed = False
        self._wait: tuple[str, float, Pending] | None = None

    def moment(self, layer: int) -> StepMoment:
        wait = self._wait
        if self.links is not None and self.links.waits:
            return self.links.moment(layer)
        if wait is None:
            return StepMoment(self.epoch, self.step, layer)
        phase, since, work = wait
        missing = work.missing()
        others = [i for i in range(self.size) if i != self.index] if missing is None else missing
        peers = tuple(map(self.name, others))
        return StepMoment(self.epoch, self.step, layer, phase, time.monotonic() - since, peers)

    def gather(self, row: Row) -> list[Row]:
        if self.links is not None:
            self.links.step = self.step
            return self.links.gather(row)
        mine = torch.tensor(row, dtype=torch.int64, device=self.device)
        out = torch.empty(self.size * mine.numel(), dtype=torch.int64, device=self.device)
        try:
            work = self._group.all_gather(out, mine)
        except RuntimeError as error:
            raise self._broken(error) from error
        self.finish(work, "header")
        return [Row(*numbers) for numbers in out.view(self.size, -1).tolist()]

    def exchange(self, blocks: Blocks) -> Pending:
        """Begin the all-to-all of some blocks."""
        self.counters.collectives += 1
        self.counters.bytes_sent += blocks.sent.numel()
        try:
            return self._group.all_to_all(blocks.received, blocks.sent, blocks.receive_bytes, blocks.send_bytes)
        except RuntimeError as error:
            raise self._broken(error) from error

    def finish(self, work: Pending, phase: str) -> None:
        """Wait for an operation; what it brought counts only if the group was not closed meanwhile.

        phase: what a dump calls it. The wait is noted by one assignment, which any thread may read.
        """
        self._wait = (phase, time.monotonic(), work)
        try:
            work.wait()
        except RuntimeError as error:
            raise self._broken(error) from error
        finally:
            self._wait = None
        with self._lock:
            if self._closed:
                raise self.lost("the exchange was closed")

    def check(self, block: torch.Tensor, source: int, stamp: Stamp, room: int) -> int:
        """Rows in a block that arrived. Raises RankLost for one of another step or of more rows than agreed."""
        found, count = read_stamp(block)
        if found != stamp:
            raise self.lost(f"{self.name(source)} sent {found}, expected {stamp}")
        if not 0 <= count <= room:
            raise self.lost(f"{self.name(source)} sent {count} rows in {stamp}, there was room for {room}")
        return count

    def close(self) -> None:
        with self._lock:
            self._closed = True
        if self.links is not None:
            self.links.close()
        self._group.close()

    def _broken(self, error: Exception) -> RankLost:
        if self._closed:
            return self.lost("the exchange was closed")
        culprit = self._group.culprit(error)
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        return self.lost(text if culprit is None else f"lost {self.name(culprit)}: {text}")
