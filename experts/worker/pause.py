"""Pause: where a step thread waits once its epoch broke, until its rank has entered another one or leaves."""

import threading
from collections.abc import Callable

from experts.errors import RankLost

_TURN = 0.05  # s between two calls of what goes on meanwhile


def _nothing() -> None:
    """Nothing goes on meanwhile."""


class Pause:
    """Thread-safe; one step thread holds here, any other releases it."""

    def __init__(self, broke: Callable[[RankLost], object]) -> None:
        """broke: called by the step thread, with what broke the epoch, whenever it begins to wait."""
        self._broke = broke
        self._changed = threading.Condition()
        self._held = False
        self._over = False

    def hold(self, lost: RankLost, beside: Callable[[], object] = _nothing) -> bool:
        """Wait, as the step thread, for `release` (then True) or `end` (False). beside: called every 50 ms meanwhile."""
        with self._changed:
            self._held = not self._over
            self._changed.notify_all()
        if self._held:
            self._broke(lost)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._over or not self._held, _TURN)
                if self._over or not self._held:
                    return not self._over
            beside()

    def held(self, seconds: float) -> bool:
        """Whether the step thread waits here, within `seconds`; at once where it never will."""
        with self._changed:
            self._changed.wait_for(lambda: self._held or self._over, seconds)
            return self._held and not self._over

    def release(self) -> None:
        """The rank is in another epoch: the step thread goes on."""
        with self._changed:
            self._held = False
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing follows: a step thread that waits here, now or later, ends."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
