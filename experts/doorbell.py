"""Doorbell: the newest step that anyone wants run. A counter that only rises, so that no ring is ever lost."""

import threading


class Doorbell:
    """Thread-safe. Idle ranks wait on it instead of opening steps; whoever has work rings the step it wants."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._newest = -1

    @property
    def newest(self) -> int:
        """The newest step rung for, -1 before the first ring."""
        return self._newest

    def ring(self, step: int) -> None:
        """Ask for step `step` to be run; a number not above the newest changes nothing."""
        with self._changed:
            if step > self._newest:
                self._newest = step
                self._changed.notify_all()

    def wait_above(self, step: int, timeout: float | None = None) -> bool:
        """Sleep until the newest step is above `step`, at most `timeout` seconds. Returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._newest > step, timeout)
