"""Doorbell: the newest step that anyone wants run. It only rises, so that no ring is ever lost."""

import threading
from collections.abc import Callable

Moment = tuple[int, int]  # (epoch, step); steps count from 0 in each epoch
NEVER: Moment = (-1, -1)


class Doorbell:
    """Thread-safe. Idle ranks wait on it instead of opening steps; a rank with work rings the step it wants."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._newest = NEVER
        self.on_ring: Callable[[], object] = lambda: None  # called after each ring that changed something, by who rang

    @property
    def newest(self) -> Moment:
        """The newest step rung for, NEVER before the first ring."""
        return self._newest

    def ring(self, wanted: Moment) -> None:
        """Ask for a step to be run; one not after the newest changes nothing."""
        with self._changed:
            if wanted <= self._newest:
                return
            self._newest = wanted
            self._changed.notify_all()
        self.on_ring()

    def wait_for(self, wanted: Moment, timeout: float | None = None) -> bool:
        """Sleep until `wanted` or a later step was rung for, at most `timeout` seconds. Returns whether it was."""
        with self._changed:
            return self._changed.wait_for(lambda: self._newest >= wanted, timeout)
