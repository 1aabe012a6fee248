"""LinkServer: the attention rank's end. Requests in, one frame of events per step and ingress out."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from experts.background import watch_task
from experts.hello import answer_stream
from router_svc.link.codec import BadFrame, frame, pack_event, party, read_frame, unpack_message
from router_svc.request import (
    Cancel,
    Claim,
    EngineRequest,
    Event,
    FailedEvent,
    Hold,
    Message,
    TokenEvent,
    refused_twin,
    taken_over,
)

log = logging.getLogger(__name__)
_UNREAD_LIMIT = 4 << 20  # bytes; an ingress that leaves more unread has its requests held


@dataclass(frozen=True, slots=True)
class _Open:
    """A request's attempt, the hash of its body, and its choices that have not ended."""

    attempt: int
    body: str
    choices: set[int]


class _Ingress:
    """One connection and the requests that came over it: what is still open of each, and which its reader holds."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.requests: dict[str, _Open] = {}
        self.held: set[str] = set()
        self.draining: asyncio.Task[None] | None = None


class LinkServer:
    """Lives in the event loop; `deliver` may be called from any thread and never blocks."""

    def __init__(self, post: Callable[[Message], None], secret: str, rank: int) -> None:
        """post: the engine's
        secret: what an ingress must know
        rank: whose end this is
        """
        self._post = post
        self._secret, self._own = secret, party(rank)
        self._owners: dict[str, _Ingress] = {}
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.Server | None = None

    async def start(self, host: str) -> int:
        """Listen on a free port of `host`; the port."""
        self._server = await asyncio.start_server(self._serve, host, 0)
        return int(self._server.sockets[0].getsockname()[1])

    def deliver(self, events: list[Event]) -> None:
        """Send a step's events to the ingresses that their requests came from."""
        self._loop.call_soon_threadsafe(self._route, events)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ingress = _Ingress(writer)
        try:
            await answer_stream(reader, writer, self._secret, self._own)
            while (value := await read_frame(reader)) is not None:
                self._take(ingress, unpack_message(value))
        except (BadFrame, TimeoutError, ConnectionError) as error:
            log.warning("link closed: %s", str(error) or "the hello took too long")
        finally:
            for request_id in list(ingress.requests):
                self._owners.pop(request_id, None)
                self._post(Cancel(request_id))
            writer.close()

    def _take(self, ingress: _Ingress, message: Message | Claim) -> None:
        if isinstance(message, Claim):
            self._makes_way(ingress, message)
            return
        if isinstance(message, EngineRequest):
            if not self._makes_way(ingress, message):
                return
            self._owners[message.request_id] = ingress
            ingress.requests[message.request_id] = _Open(message.attempt, message.body, set(range(message.n)))
        elif message.request_id not in ingress.requests:
            return  # it ended meanwhile, or is another ingress's
        elif isinstance(message, Cancel):
            self._close_choices(message.request_id, None if message.choice is None else {message.choice})
        elif message.held:
            ingress.held.add(message.request_id)
        else:
            ingress.held.discard(message.request_id)
            if ingress.draining is not None:
                return  # the end of draining resumes it
        self._post(message)

    def _makes_way(self, ingress: _Ingress, newer: EngineRequest | Claim) -> bool:
        """Whether no other request has the id now: one with the same body ends, for another's sake the newer is refused."""
        request_id, owner = newer.request_id, self._owners.get(newer.request_id)
        if owner is None:
            return True
        older = owner.requests[request_id]
        if older.body != newer.body:
            ingress.writer.write(frame([pack_event(refused_twin(request_id, newer.attempt))]))
            return False
        owner.writer.write(frame([pack_event(taken_over(request_id, older.attempt))]))
        self._close_choices(request_id, None)
        self._post(Cancel(request_id))
        return True

    def _route(self, events: list[Event]) -> None:
        frames: dict[_Ingress, list[list[object]]] = {}
        for event in events:
            ingress = self._owners.get(event.request_id)
            if ingress is None or event.attempt != ingress.requests[event.request_id].attempt:
                continue
            frames.setdefault(ingress, []).append(pack_event(event))
            if isinstance(event, FailedEvent):
                self._close_choices(event.request_id, None)
            elif isinstance(event, TokenEvent) and event.finish_reason:
                self._close_choices(event.request_id, {event.choice})
        for ingress, packed in frames.items():
            ingress.writer.write(frame(packed))
            unread = ingress.writer.transport.get_write_buffer_size()
            if unread > _UNREAD_LIMIT and ingress.draining is None:
                stuck = partial(self._cut, ingress)
                ingress.draining = watch_task("drain of an ingress", self._drain(ingress), stuck, returns=True)

    async def _drain(self, ingress: _Ingress) -> None:
        """Hold an ingress's requests until it has read what was sent."""
        for request_id in ingress.requests:
            self._post(Hold(request_id, True))
        try:
            await ingress.writer.drain()
        except ConnectionError:
            return  # the reading side sees the end and cancels
        finally:
            ingress.draining = None
        for request_id in ingress.requests.keys() - ingress.held:
            self._post(Hold(request_id, False))

    def _cut(self, ingress: _Ingress, what: str) -> None:
        """Nobody would resume what is held: the ingress sees the end of its connection and fails its requests."""
        ingress.writer.transport.abort()

    def _close_choices(self, request_id: str, choices: set[int] | None) -> None:
        """These choices (None = all) have ended or are wanted no more; with the last the request is forgotten."""
        ingress = self._owners[request_id]
        still_open = ingress.requests[request_id].choices
        still_open -= still_open.copy() if choices is None else choices
        if not still_open:
            del self._owners[request_id], ingress.requests[request_id]
            ingress.held.discard(request_id)
