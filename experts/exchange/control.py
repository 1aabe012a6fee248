"""Control: what the ranks of an epoch say to each other beside tokens: rows of headers, the bell, and that it is over.

One a worker, through all its epochs. An exchange gets its rows from it, step loops sleep at its bell.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

from experts.epoch.agreement import Row
from experts.errors import RankLost
from experts.exchange.doorbell import Doorbell, Moment

Ring = Callable[[Moment], None]  # asks every rank of the group, the own one included, for a step; never blocks
_NEVER_RUN = 1 << 62  # a step after all that any epoch has


class Control(ABC):
    """`ring`, `wait_for` and `abort` are for any thread, `gather` for the step thread."""

    def __init__(self, bell: Doorbell, ring: Ring | None = None) -> None:
        """bell: which the other ranks ring here, too
        ring: None: there is no other rank
        """
        self._bell, self._ring = bell, ring or bell.ring

    @abstractmethod
    def gather(self, row: Row) -> list[Row]:
        """Everyone's row of a header, in the order of the members; blocks until all have brought theirs. Raises RankLost."""

    def ring(self, wanted: Moment) -> None:
        """Ask all ranks of the epoch, this one included, to run a step; never blocks."""
        self._ring(wanted)

    def wait_for(self, wanted: Moment, timeout: float | None = None) -> bool:
        """Sleep until someone rang for `wanted` or a later step, at most `timeout` s; whether someone did. An epoch that is
        over rings for all its steps."""
        return self._bell.wait_for(wanted, timeout)

    @abstractmethod
    def abort(self) -> None:
        """Break the epoch at once: who waits in it, here or on a peer, gets RankLost, and so does who begins to."""

    def _wake(self, epoch: int) -> None:
        """Have a loop of this rank that sleeps find the epoch over."""
        self._bell.ring((epoch, _NEVER_RUN))


class OwnControl(Control):
    """Of the only rank: its row is all rows."""

    _aborted = False

    def gather(self, row: Row) -> list[Row]:
        if self._aborted:
            raise RankLost(row.epoch, row.step, "the exchange was closed")
        return [row]

    def abort(self) -> None:
        self._aborted = True
        self._wake(_NEVER_RUN)
