"""WeightServer and fetch_expert: one expert's weights from a rank's slots to a peer, on connections of their own.

A failure here never touches the serving group. Frames: four bytes of length, then msgpack; then the tensors' bytes in
slices, no faster than the bandwidth that the asking side allows; then the checksum. A hello goes before them. Knows no
placement and no step.
"""

import socket
import socketserver
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgpack
import torch

from experts.background import only_log, watch_thread
from experts.hello import HELD_UP, PAUSE, Party, answer, call
from experts.slots.digest import Digest, digest_of, slices

_LENGTH = struct.Struct(">I")
_MOST_BYTES = 1 << 16  # of a frame
_QUIET = 5.0  # s without a byte after which a peer counts as stuck
_PARTY = Party("weights", 1)  # the format: raise it with every change of the frames

Lookup = Callable[
    [int, int, int], tuple[torch.Tensor, ...]
]  # layer, local slot, expert -> tensors; KeyError: not there


class MoveFailed(Exception):
    """An expert could not be brought here; the text says why in one line. Nothing changed."""


@dataclass(frozen=True, slots=True)
class PeerSlot:
    """Where a copy lies: the rank's weight server and its slot."""

    host: str
    port: int
    slot: int


class WeightServer:
    """Listens on `host` until closed; serves callers that know the secret, each from a thread of its own."""

    def __init__(self, host: str, secret: str, lookup: Lookup) -> None:
        self._server = _Server((host, 0), _Connection)
        self._server.secret, self._server.lookup = secret, lookup
        self.port: int = self._server.server_address[1]
        self._host, self._closing = host, False
        # Without it fetches from here fail, and the balancer says so.
        self._thread = watch_thread("weights", self._serve, only_log, returns=True)

    def close(self) -> None:
        """Stop listening, and let the slots go."""
        self._closing = True
        with suppress(OSError):
            socket.create_connection((self._host, self.port), timeout=1).close()  # wakes the thread that waits
        self._thread.join(1)
        self._server.server_close()

    def _serve(self) -> None:
        """Unlike serve_forever, which looks twice a second whether it is to end, this sleeps until someone comes."""
        while not self._closing:
            self._server.handle_request()


def fetch_expert(
    peer: PeerSlot,
    secret: str,
    layer: int,
    expert: int,
    into: tuple[torch.Tensor, ...],
    bandwidth: float,
    seconds: float,
) -> bytes:
    """Fill `into` with a peer's copy; its checksum, compared with what arrived.

    bandwidth: bytes/s
    seconds: in all

    Raises MoveFailed for a peer that is gone, refuses, is stuck, or sent other bytes than it holds.
    """
    deadline = time.monotonic() + seconds
    try:
        with _connected(peer, secret) as link:
            asked = {"layer": layer, "slot": peer.slot, "expert": expert, "bandwidth": bandwidth}
            _send(link, asked)
            answer = _receive(link)
            if answer["error"]:
                raise MoveFailed(f"{peer.host}:{peer.port}: {answer['error']}")
            sizes = [part.nbytes for part in into]
            if answer["sizes"] != sizes:
                raise MoveFailed(f"{peer.host}:{peer.port} holds {answer['sizes']} bytes, expected {sizes}")
            digest = Digest()
            for part in into:
                _fill(link, part, digest, deadline)
            checksum = bytes(_exactly(link, len(digest.value())))
    except (OSError, ValueError, KeyError, msgpack.UnpackException) as error:
        raise MoveFailed(f"expert {expert} of layer {layer} from {peer.host}:{peer.port}: {error}") from error
    if checksum != digest.value():
        raise MoveFailed(f"expert {expert} of layer {layer} from {peer.host}:{peer.port}: its bytes changed on the way")
    if digest_of(into) != checksum:
        raise MoveFailed(f"expert {expert} of layer {layer}: what lies here is not what arrived")
    return checksum


def _connected(peer: PeerSlot, secret: str) -> socket.socket:
    """A connection whose other end knows the secret; a hello that a busy machine held up is tried again. Raises OSError."""
    until = time.monotonic() + _QUIET
    while True:
        link = socket.create_connection((peer.host, peer.port), timeout=_QUIET)
        try:
            call(link, secret, _PARTY)
            return link
        except HELD_UP:
            link.close()
            if time.monotonic() > until:
                raise
            time.sleep(PAUSE)
        except BaseException:
            link.close()
            raise


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    secret: str
    lookup: Lookup


class _Connection(socketserver.BaseRequestHandler):
    request: socket.socket
    server: _Server

    def handle(self) -> None:
        link = self.request
        link.settimeout(_QUIET)
        try:
            answer(link, self.server.secret, _PARTY)
            asked = _receive(link)
            try:
                parts = self.server.lookup(int(asked["layer"]), int(asked["slot"]), int(asked["expert"]))
            except KeyError as error:
                _send(link, {"error": str(error.args[0]), "sizes": []})
                return
            _send(link, {"error": "", "sizes": [part.nbytes for part in parts]})
            link.sendall(_stream(link, parts, float(asked["bandwidth"])))
        except (OSError, ValueError, KeyError, TypeError, msgpack.UnpackException):
            return  # a stranger, or a peer that went away: its side tells of it


def _stream(link: socket.socket, parts: tuple[torch.Tensor, ...], bandwidth: float) -> bytes:
    """Send the tensors at `bandwidth` bytes/s; their checksum."""
    digest, started, sent = Digest(), time.monotonic(), 0
    for part in parts:
        for data in slices(part):
            link.sendall(data)
            digest.feed(data)
            sent += len(data)
            early = started + sent / bandwidth - time.monotonic()
            if early > 0:
                time.sleep(min(early, _QUIET / 2))
    return digest.value()


def _fill(link: socket.socket, part: torch.Tensor, digest: Digest, deadline: float) -> None:
    """Receive one tensor's bytes in place (through the CPU for one on a GPU)."""
    here = part if part.device.type == "cpu" else torch.empty_like(part, device="cpu")
    view = memoryview(here.view(torch.uint8).reshape(-1).numpy().data)
    at = 0
    while at < len(view):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{at} of {len(view)} bytes when the time was over")
        got = link.recv_into(view[at : at + (1 << 20)])
        if not got:
            raise ConnectionError(f"the peer closed after {at} of {len(view)} bytes")
        digest.feed(view[at : at + got])
        at += got
    if here is not part:
        part.copy_(here)


def _send(link: socket.socket, message: dict[str, Any]) -> None:
    body: bytes = msgpack.packb(message)
    link.sendall(_LENGTH.pack(len(body)) + body)


def _receive(link: socket.socket) -> dict[str, Any]:
    (length,) = _LENGTH.unpack(_exactly(link, _LENGTH.size))
    if length > _MOST_BYTES:
        raise ValueError(f"a frame of {length} bytes")
    message = msgpack.unpackb(_exactly(link, length))
    if not isinstance(message, dict):
        raise ValueError(f"a frame that is a {type(message).__name__}")
    return message


def _exactly(link: socket.socket, count: int) -> bytes:
    out = bytearray()
    while len(out) < count:
        data = link.recv(count - len(out))
        if not data:
            raise ConnectionError("the peer closed")
        out += data
    return bytes(out)
