"""What crosses from other threads into an engine: messages in, the queue's limit, and which requests live.

A request that was accepted ends with exactly one last event per choice, or one FailedEvent, from one side or the other.
"""

import threading
from collections import deque

from router_svc.request import Cancel, Code, EngineRequest, Event, FailedEvent, Message, refused_twin


class Intake:
    """Thread-safe. `closed` holds why the engine takes nothing any more, None while it does."""

    def __init__(self, max_queue_len: int) -> None:
        self._lock = threading.Lock()
        self._messages: deque[Message] = deque()
        self._live: dict[str, EngineRequest] = {}
        self._queued: dict[str, EngineRequest] = {}  # of those that live, which have not started
        self._limit = max_queue_len
        self.closed: str | None = None

    def put(self, message: Message) -> FailedEvent | None:
        """Queue a message; returns the refusal when a request can't be taken."""
        with self._lock:
            if isinstance(message, EngineRequest):
                refusal = self._refuse(message)
                if refusal is not None:
                    return refusal
                self._live[message.request_id] = self._queued[message.request_id] = message
            elif isinstance(message, Cancel) and message.choice is None:
                self._live.pop(message.request_id, None)  # from now on its id may come again
                self._queued.pop(message.request_id, None)
            self._messages.append(message)
            return None

    def take(self) -> list[Message]:
        """All queued messages, in order."""
        with self._lock:
            messages = list(self._messages)
            self._messages.clear()
            return messages

    def __bool__(self) -> bool:
        return bool(self._messages)

    def lives(self, request: EngineRequest) -> bool:
        """Whether the request has neither ended nor been dropped; another with its id does not count."""
        return self._live.get(request.request_id) is request

    def started(self, request: EngineRequest) -> None:
        """An accepted request has left the queue; one that was dropped has before."""
        with self._lock:
            if self._queued.get(request.request_id) is request:
                del self._queued[request.request_id]

    def forget(self, request: EngineRequest) -> bool:
        """The request ended; False when something else ended it before."""
        with self._lock:
            found = self.lives(request)
            if found:
                del self._live[request.request_id]
            return found

    def close(self, reason: str, code: Code) -> list[Event]:
        """Take nothing from now on; returns the failures of everything that lived. Later calls return nothing."""
        with self._lock:
            if self.closed is None:
                self.closed = reason
            return self._end_all(code, reason)

    def end_all(self, code: Code, reason: str) -> list[Event]:
        """End everything that lives, and go on taking requests."""
        with self._lock:
            return self._end_all(code, reason)

    def _end_all(self, code: Code, reason: str) -> list[Event]:
        ended: list[Event] = [
            FailedEvent(request.request_id, request.attempt, code, reason) for request in self._live.values()
        ]
        self._live.clear()
        self._messages.clear()
        self._queued.clear()
        return ended

    def _refuse(self, request: EngineRequest) -> FailedEvent | None:
        if self.closed is not None:
            return FailedEvent(request.request_id, request.attempt, Code.UNAVAILABLE, self.closed)
        if request.request_id in self._live:
            return refused_twin(request.request_id, request.attempt)
        if len(self._queued) >= self._limit:
            message = f"the queue is full: {len(self._queued)} requests wait, the limit is {self._limit}"
            return FailedEvent(request.request_id, request.attempt, Code.RESOURCE_EXHAUSTED, message, retry_after=1.0)
        return None
