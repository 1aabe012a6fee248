"""LinkEngines: the ingress's end. Attention ranks behind connections, as an EngineClient."""

import asyncio
import logging
import time
from dataclasses import dataclass
from functools import partial

from experts.background import watch_task
from experts.hello import HELD_UP, PAUSE, Stranger, call_stream
from router_svc.api.engines import EngineClient, EventStream
from router_svc.api.limits import retry_hint
from router_svc.api.pick import Picker
from router_svc.link.codec import BadFrame, frame, pack_message, party, read_frame, unpack_event
from router_svc.request import (
    Cancel,
    Claim,
    Code,
    EngineRequest,
    Event,
    FailedEvent,
    Message,
    refused_twin,
    taken_over,
)

log = logging.getLogger(__name__)
_CONNECT = 120.0  # s in which a rank that is there must answer a hello; on a busy machine it is tried again and again


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """Where an attention rank listens."""

    rank: int
    host: str
    port: int


class _Peer:
    """One connection to an attention rank."""

    def __init__(self, address: LinkAddress, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.address = address
        self.reader = reader
        self.writer = writer
        self.streams: dict[str, EventStream] = {}


class LinkEngines(EngineClient):
    """Connect with `connect`; then requests are sent to the rank that the picker names."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._peers: dict[int, _Peer] = {}
        self._picker = Picker([])
        self._state = ("starting", "not connected to the attention ranks yet")
        self._readers: list[asyncio.Task[None]] = []

    async def connect(self, addresses: list[LinkAddress]) -> None:
        """Open a connection to every attention rank that is there; without one, requests end with UNAVAILABLE."""
        for address, streams in zip(addresses, await asyncio.gather(*map(self._open, addresses)), strict=True):
            if streams is None:
                continue
            peer = _Peer(address, *streams)
            self._peers[address.rank] = peer
            name = f"link to rank {address.rank}"
            self._readers.append(watch_task(name, self._read(peer), partial(self._lost, peer), returns=True))
        self._picker = Picker(list(self._peers))

    async def _open(self, address: LinkAddress) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection to a rank that is there and is this cluster's; a hello that a busy machine held up is tried again."""
        until = time.monotonic() + _CONNECT
        while True:
            writer = None
            try:
                reader, writer = await asyncio.open_connection(address.host, address.port)
                found = await call_stream(reader, writer, self._secret, party())
                if found.rank != address.rank:
                    raise Stranger(f"rank {found.rank} answers there")
                return reader, writer
            except OSError as error:  # after a rank's death, which the supervisor reports, an ingress starts without it
                if writer is not None:
                    writer.close()
                if not isinstance(error, HELD_UP) or time.monotonic() > until:
                    log.error("no link to rank %d: %s", address.rank, str(error) or "no answer to the hello")
                    return None
                await asyncio.sleep(PAUSE)

    def show_state(self, state: str, reason: str) -> None:
        """What the supervisor says of the cluster."""
        self._state = (state, reason)

    def state(self) -> tuple[str, str]:
        return self._state

    def submit(self, request: EngineRequest) -> EventStream:
        for peer in self._peers.values():
            older = peer.streams.get(request.request_id)
            if older is not None and older.request.body == request.body:
                self._abort(peer, older, taken_over(request.request_id, older.request.attempt))
            elif older is not None:
                return _failed(request, refused_twin(request.request_id, request.attempt))
        if not self._picker.ranks:
            text = f"no attention rank can serve: {self._state[1] or 'all connections are lost'}"
            hint = retry_hint(self._state[0])
            return _failed(request, FailedEvent(request.request_id, request.attempt, Code.UNAVAILABLE, text, hint))
        rank = self._picker.pick(request)
        peer = self._peers[rank]

        def post(message: Message) -> None:
            if isinstance(message, Cancel) and message.choice is None:
                self._end(peer, message.request_id)
            if not peer.writer.is_closing():
                peer.writer.write(frame(pack_message(message)))

        stream = EventStream(request, post)
        peer.streams[request.request_id] = stream
        peer.writer.write(frame(pack_message(request)))
        claim = frame(pack_message(Claim(request.request_id, request.attempt, request.body)))
        for other in self._peers.values():  # an ingress may have given an older one with this id to another rank
            if other is not peer and not other.writer.is_closing():
                other.writer.write(claim)
        return stream

    async def _read(self, peer: _Peer) -> None:
        """Events of one rank until its connection ends, well or not; then its requests fail."""
        reason = "the connection ended"
        try:
            while (events := await read_frame(peer.reader)) is not None:
                for value in events:
                    event = unpack_event(value)
                    stream = peer.streams.get(event.request_id)
                    if stream is None:
                        self._refuse_claim(event)
                        continue
                    stream.feed(event)
                    if stream.over:
                        self._end(peer, event.request_id)
        except BadFrame as error:
            reason = str(error)
            log.error("link to rank %d: %s", peer.address.rank, error)
        self._lost(peer, reason)

    def _lost(self, peer: _Peer, reason: str) -> None:
        """A rank that nobody listens to is as good as gone: its requests fail, and it gets no more."""
        rank = peer.address.rank
        self._picker.drop(rank)
        peer.writer.close()
        text = f"attention rank {rank} is gone: {reason}"
        if self._state[0] == "ready":
            self._state = ("degraded", text)
        hint = retry_hint(self._state[0])
        for request_id, stream in list(peer.streams.items()):
            stream.feed(FailedEvent(request_id, stream.request.attempt, Code.UNAVAILABLE, text, hint))
        peer.streams.clear()

    def _refuse_claim(self, event: Event) -> None:
        """A rank has another request with the id of one that was given to another rank."""
        for peer in self._peers.values():
            stream = peer.streams.get(event.request_id)
            if stream is not None and isinstance(event, FailedEvent) and event.attempt == stream.request.attempt:
                self._abort(peer, stream, event)

    def _abort(self, peer: _Peer, stream: EventStream, event: FailedEvent) -> None:
        """End a stream for a reason that its rank does not know of."""
        request_id = event.request_id
        stream.feed(event)
        self._end(peer, request_id)
        if not peer.writer.is_closing():
            peer.writer.write(frame(pack_message(Cancel(request_id))))

    def _end(self, peer: _Peer, request_id: str) -> None:
        stream = peer.streams.pop(request_id, None)
        if stream is not None:
            self._picker.done(peer.address.rank, stream.request)


def _failed(request: EngineRequest, event: FailedEvent) -> EventStream:
    """The stream of a request that is sent nowhere."""
    stream = EventStream(request, lambda _: None)
    stream.feed(event)
    return stream
