"""EventLog: what happened in the cluster and why, a line each, newest last. Bounded."""

from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

KEPT = 500


@dataclass(frozen=True, slots=True)
class ClusterEvent:
    """number: rises by one
    seconds: Unix time
    kind: one word
    text: a line for people
    """

    number: int
    seconds: float
    kind: str
    text: str


class EventLog:
    """Knows no clock: the caller says when."""

    def __init__(self) -> None:
        self._events: deque[ClusterEvent] = deque(maxlen=KEPT)
        self._count = 0

    def add(self, seconds: float, kind: str, text: str) -> None:
        """Note an event."""
        self._count += 1
        self._events.append(ClusterEvent(self._count, seconds, kind, " ".join(text.split())))

    def entries(self) -> list[dict[str, Any]]:
        """All that are kept, oldest first."""
        return [asdict(event) for event in self._events]
