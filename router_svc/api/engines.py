"""Where requests go: the EngineClient interface, streams of events with bounded memory, and engines in this process."""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

from router_svc.request import (
    Cancel,
    EngineRequest,
    Event,
    FailedEvent,
    Hold,
    Message,
    TokenEvent,
    refused_twin,
    taken_over,
)

# A stream whose reader is this many tokens behind is held; it resumes below half.
HOLD_ABOVE = 512


class EventStream:
    """One request's events, in order, for one reader in the event loop.

    Fenced: only events of the newest attempt, and of each choice only the next index, are taken.
    """

    def __init__(self, request: EngineRequest, post: Callable[[Message], None]) -> None:
        self.request = request
        self._post = post
        self._events: deque[Event] = deque()
        self._ready = asyncio.Event()
        self._next_index = [0] * request.n
        self._open = set(range(request.n))
        self._failed = False
        self._held = False

    @property
    def over(self) -> bool:
        """Whether no event can come any more (some may still be unread)."""
        return self._failed or not self._open

    def feed(self, event: Event) -> None:
        """Take an event from the engine's side (in the event loop)."""
        if event.attempt != self.request.attempt or self.over:
            return
        if isinstance(event, FailedEvent):
            self._failed = True
        else:
            if event.choice not in self._open or event.index != self._next_index[event.choice]:
                return
            self._next_index[event.choice] += len(event.token_ids)
            if event.finish_reason is not None:
                self._open.remove(event.choice)
        self._events.append(event)
        self._ready.set()
        if not self._held and len(self._events) > HOLD_ABOVE and not self.over:
            self._held = True
            self._post(Hold(self.request.request_id, True))

    async def next(self) -> list[TokenEvent] | None:
        """All unread token events, None at the end. Raises StreamFailed when the request failed."""
        while not self._events:
            if self.over:
                return None
            self._ready.clear()
            await self._ready.wait()
        out: list[TokenEvent] = []
        while self._events and len(out) < HOLD_ABOVE // 2:
            event = self._events[0]
            if isinstance(event, FailedEvent):
                if out:
                    break
                raise StreamFailed(event)
            out.append(event)
            self._events.popleft()
        if self._held and len(self._events) < HOLD_ABOVE // 2 and not self.over:
            self._held = False
            self._post(Hold(self.request.request_id, False))
        return out

    def cancel(self, choice: int | None = None) -> None:
        """Want no more of one choice or of all; events that are under way are dropped."""
        if self.over or (choice is not None and choice not in self._open):
            return  # a choice may have ended while its reader was behind; the others go on
        if choice is None or len(self._open) == 1:
            self._failed = True
            self._post(Cancel(self.request.request_id))
        else:
            self._open.remove(choice)
            self._post(Cancel(self.request.request_id, choice))
        self._ready.set()

    def fail(self, event: FailedEvent) -> None:
        """End the request from this side; its reader gets what came before, then the failure."""
        if not self.over:
            self._post(Cancel(self.request.request_id))
            self.feed(event)


class StreamFailed(Exception):
    """The engine ended the request with an error."""

    def __init__(self, event: FailedEvent) -> None:
        super().__init__(event.message)
        self.event = event


class EngineClient(ABC):
    """The attention ranks as an ingress sees them."""

    @abstractmethod
    def submit(self, request: EngineRequest) -> EventStream:
        """Send a request to a rank. Its failure, if any, comes through the stream."""

    @abstractmethod
    def state(self) -> tuple[str, str]:
        """("ready" or another state of `status`, why)."""


class LocalEngines(EngineClient):
    """One engine in this process. `deliver` is the engine's callback; the rest runs in the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._post: Callable[[Message], None] | None = None
        self._streams: dict[str, EventStream] = {}
        self._state = ("starting", "the model is loading")

    def attach(self, post: Callable[[Message], None]) -> None:
        """Give the engine's `post`; from now on requests are taken."""
        self._post = post
        self._state = ("ready", "")

    def detach(self, state: str, reason: str) -> None:
        """Take no more requests."""
        self._state = (state, reason)

    def deliver(self, events: list[Event]) -> None:
        """From the step thread: one crossing into the event loop per step."""
        try:
            self._loop.call_soon_threadsafe(self._fan_out, events)
        except RuntimeError:
            return  # the loop has closed: nobody is left to read

    def submit(self, request: EngineRequest) -> EventStream:
        assert self._post is not None, "admission is refused before the engine is attached"
        post = self._post
        older = self._streams.get(request.request_id)
        if older is not None and older.request.body != request.body:
            refused = EventStream(request, lambda _: None)
            refused.feed(refused_twin(request.request_id, request.attempt))
            return refused
        if older is not None:
            older.feed(taken_over(request.request_id, older.request.attempt))
            post(Cancel(request.request_id))

        def tell(message: Message) -> None:
            if isinstance(message, Cancel) and message.choice is None:
                self._streams.pop(message.request_id, None)
            post(message)

        stream = EventStream(request, tell)
        self._streams[request.request_id] = stream
        post(request)
        return stream

    def state(self) -> tuple[str, str]:
        return self._state

    def _fan_out(self, events: list[Event]) -> None:
        for event in events:
            stream = self._streams.get(event.request_id)
            if stream is None:
                continue
            stream.feed(event)
            if stream.over:
                del self._streams[event.request_id]
