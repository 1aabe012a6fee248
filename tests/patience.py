"""How long tests wait. Generous, so that a test passes while other programs take both cores; nothing is judged by it."""

import time
from collections.abc import Callable

PATIENCE = 150.0  # s, for what takes a moment on a quiet machine


def wait_until(seen: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Return as soon as `seen` gives something true. Fails after `seconds`, naming `what` was waited for."""
    end = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.02)
