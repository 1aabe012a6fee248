"""A rank's lease: it ends its process when nobody has renewed it for a while, so that no detached rank outlives its cluster."""

import asyncio
import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)


class Lease:
    """Lives in the running event loop. `end` is called once, when `seconds` have passed without `renew`."""

    def __init__(self, end: Callable[[], None], seconds: float) -> None:
        self._end, self._seconds = end, seconds
        self._renewed = time.monotonic()
        self._loop = asyncio.get_event_loop()
        self._loop.call_later(seconds, self._look)

    def renew(self) -> None:
        """The supervisor is there."""
        self._renewed = time.monotonic()

    def _look(self) -> None:
        left = self._renewed + self._seconds - time.monotonic()
        if left > 0:
            self._loop.call_later(left, self._look)
            return
        log.error("no supervisor for %.0f s: this rank ends", self._seconds)
        self._end()
