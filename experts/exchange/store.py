"""The store where members of an epoch meet: a small dictionary behind a TCP port, and its client as a torch Store.

torch's own TCPStore asks the resolver for a peer's name at every connection, for messages that nobody reads: five
seconds each time an answer is lost, in which its server stands still. Knows no members and no epochs.
Frames: four bytes of length, then msgpack: [operation, arguments...] one way, [error or none, result] the other.
"""

import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgpack
from torch.distributed import DistStoreError, Store

from experts.background import only_log, watch_thread

_LENGTH = struct.Struct(">I")
_MOST_BYTES = 16 << 20
_GRACE = 5.0  # s that an answer may take beyond the wait that was asked for


class StoreServer:
    """Listens on `host` only; serves from threads of its own until closed. `port` tells which one was taken.

    ended: called from its thread, should it end before that.
    """

    def __init__(self, host: str, port: int = 0, ended: Callable[[str], object] = only_log) -> None:
        self.host = host
        self._server = _Server((host, port), _Connection)
        self.port: int = self._server.server_address[1]
        watch_thread("store", self._server.serve_forever, ended, returns=True)

    def close(self) -> None:
        """Stop listening; clients that wait get an error when their wait is over."""
        self._server.shutdown()
        self._server.server_close()


class StoreClient(Store):
    """One connection; calls of several threads take turns, so a caller that waits long uses a `clone`.

    Raises DistStoreError (a RuntimeError) for a wait that passed and for a server that is gone.
    """

    def __init__(self, host: str, port: int, timeout: float) -> None:
        super().__init__()
        self._address = (host, port)
        self._seconds = timeout
        self._lock = threading.Lock()
        try:
            self._socket = socket.create_connection(self._address, timeout=timeout)
        except OSError as error:
            raise DistStoreError(f"no store at {host} port {port}: {error}") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def clone(self) -> "StoreClient":
        """A connection of its own to the same store."""
        return StoreClient(*self._address, self._seconds)

    @property
    def timeout(self) -> timedelta:
        """How long `get` and `wait` wait for a key."""
        return timedelta(seconds=self._seconds)

    def set_timeout(self, timeout: timedelta) -> None:
        """Change how long they wait."""
        self._seconds = timeout.total_seconds()

    def set(self, key: str, value: str | bytes) -> None:
        """Put `value` under `key`."""
        self._ask("set", key, value.encode() if isinstance(value, str) else bytes(value))

    def get(self, key: str) -> bytes:
        """The value under `key`, once there is one."""
        return self._ask("get", key, self._seconds, wait=self._seconds)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Return once all keys are there."""
        seconds = self._seconds if timeout is None else timeout.total_seconds()
        for key in keys:
            self._ask("get", key, seconds, wait=seconds)

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""
        return self._ask("check", keys)

    def add(self, key: str, amount: int) -> int:
        """Add to the number under `key`, 0 where there is none; the new number."""
        return self._ask("add", key, amount)

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        """Put `desired` if the value is `expected` (empty: if there is none); what is there afterwards."""
        return self._ask("compare_set", key, expected.encode(), desired.encode())

    def delete_key(self, key: str) -> bool:
        """Drop a key; whether it was there."""
        return self._ask("delete_key", key)

    def num_keys(self) -> int:
        """How many keys there are."""
        return self._ask("num_keys")

    def _ask(self, *request: Any, wait: float = 0.0) -> Any:
        with self._lock:
            try:
                self._socket.settimeout(wait + _GRACE)
                _send(self._socket, list(request))
                error, result = _receive(self._socket)
            except (OSError, EOFError) as broken:
                self._socket.close()
                raise DistStoreError(f"the store at {self._address} is gone: {broken}") from broken
        if error is not None:
            raise DistStoreError(error)
        return result


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, *args: Any) -> None:
        self.values: dict[str, bytes] = {}
        self.changed = threading.Condition()
        super().__init__(*args)


class _Connection(socketserver.BaseRequestHandler):
    """One client. Methods named do_<operation> run with the server's lock held."""

    server: _Server

    def handle(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            try:
                operation, *arguments = _receive(self.request)
            except (OSError, EOFError, ValueError):
                return  # the client is gone, or is none of ours
            try:
                with self.server.changed:
                    answer = [None, getattr(self, f"do_{operation}")(*arguments)]
            except (AttributeError, TypeError, ValueError, TimeoutError) as error:
                answer = [str(error), None]
            try:
                _send(self.request, answer)
            except OSError:
                return

    def do_set(self, key: str, value: bytes) -> None:
        self.server.values[key] = value
        self.server.changed.notify_all()

    def do_get(self, key: str, seconds: float) -> bytes:
        started = time.monotonic()
        if not self.server.changed.wait_for(lambda: key in self.server.values, seconds):
            raise TimeoutError(f"nobody set {key!r} in {time.monotonic() - started:.1f} s")
        return self.server.values[key]

    def do_check(self, keys: list[str]) -> bool:
        return all(key in self.server.values for key in keys)

    def do_add(self, key: str, amount: int) -> int:
        total = int(self.server.values.get(key, b"0")) + amount
        self.do_set(key, str(total).encode())
        return total

    def do_compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:
        if self.server.values.get(key, b"") == expected:
            self.do_set(key, desired)
        return self.server.values.get(key, b"")

    def do_delete_key(self, key: str) -> bool:
        return self.server.values.pop(key, None) is not None

    def do_num_keys(self) -> int:
        return len(self.server.values)


def _send(connection: socket.socket, message: list[Any]) -> None:
    packed = msgpack.packb(message)
    connection.sendall(_LENGTH.pack(len(packed)) + packed)


def _receive(connection: socket.socket) -> list[Any]:
    (size,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if size > _MOST_BYTES:
        raise ValueError(f"a frame of {size} bytes")
    message = msgpack.unpackb(_exactly(connection, size))
    if not isinstance(message, list) or not message:
        raise ValueError("not a frame of this protocol")
    return message


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            raise EOFError("the connection was closed")
        parts += part
    return bytes(parts)
