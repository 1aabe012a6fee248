"""Leases: the ranks' signs of life from the supervisor, one task a rank, so that no rank's trouble is another's.

Knows ranks by their verb `keep`, and no membership.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from cluster.state.roster import Seat
from experts.background import Ended, watch_task
from experts.worker.deadlines import DEADLINES
from experts.worker.remote import Gone

log = logging.getLogger(__name__)


class Leases:
    """Lives in the supervisor's event loop.

    hung: a rank did not answer in `patience` s
    trouble: a renewal failed unexpectedly (reported once until one succeeds; it is tried again)
    ended: no renewals come any more
    """

    def __init__(
        self,
        hung: Callable[[Seat], Awaitable[None]],
        trouble: Callable[[str], None],
        ended: Ended,
        patience: float,
        renew: float = DEADLINES.renew,
    ) -> None:
        self._hung, self._trouble, self._ended = hung, trouble, ended
        self._patience, self._renew = patience, renew
        self._tasks: list[asyncio.Task[None]] = []

    def keep(self, seat: Seat) -> None:
        """Renew a rank's lease from now on, for as long as its process lives."""
        name = f"lease of rank {seat.rank}"
        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks.append(watch_task(name, self._keep(name, seat), self._ended, returns=True))

    def stop(self) -> None:
        """No more renewals."""
        for task in self._tasks:
            task.cancel()

    async def _keep(self, name: str, seat: Seat) -> None:
        said = ""
        while True:
            try:
                async with asyncio.timeout(self._patience):
                    await seat.port.keep()
                said = ""
            except TimeoutError:
                await self._hung(seat)
            except Gone as error:  # the watch that waits on `ended` deals with it
                log.info("%s can't be kept: %s", seat.title, error)
                return
            except Exception as error:  # one bad call must not cost the rank its life
                what = f"{name} could not be renewed: {type(error).__name__}: {error}"
                log.exception("%s", what)
                if what != said:
                    self._trouble(what)
                said = what
            await asyncio.sleep(self._renew)
