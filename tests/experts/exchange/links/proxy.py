"""A proxy for a rank's connections, which end after so many bytes of that rank, as those of a killed process do."""

import contextlib
import select
import socket
import threading
from dataclasses import dataclass
from typing import Literal

from experts.epoch.membership import HERE

End = Literal["caller", "listener"]


class Life:
    """Of the rank behind some proxies. All its connections end at once, behind what it has sent by then."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.ended = False
        self.flows: list[Flow] = []  # of what the rank sends
        self.listeners: list[socket.socket] = []

    def end(self) -> None:
        """Called with the lock."""
        self.ended = True
        for flow in self.flows:
            with contextlib.suppress(OSError):
                flow.pass_on()
        for one in (*self.listeners, *(end for flow in self.flows for end in (flow.source, flow.sink))):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class Flow:
    """What the rank sends on one connection. passed: all of it; limit: bytes that are passed on, None = all."""

    source: socket.socket
    sink: socket.socket
    passed: bytearray
    limit: int | None

    def pass_on(self) -> bool:
        """Pass on what is there. Whether there may be more."""
        with contextlib.suppress(BlockingIOError):
            while (room := 1 << 16 if self.limit is None else self.limit - len(self.passed)) > 0:
                data = self.source.recv(room, socket.MSG_DONTWAIT)
                if not data:
                    self.sink.shutdown(socket.SHUT_WR)
                    return False
                self.sink.sendall(data)
                self.passed.extend(data)
        return True

    @property
    def full(self) -> bool:
        return len(self.passed) == self.limit


class Proxy:
    """Between one other rank and the one behind it.

    port: to be called in place of the target
    sent: what the rank behind it has sent, as it was passed on
    """

    def __init__(self, life: Life, target: int, behind: End, near: bool, limit: int | None = None) -> None:
        """target: the port that is called here
        behind: which end the rank is
        near: over the Unix sockets beside the ports
        limit: bytes of it after which its life ends
        """
        self._life, self._target, self._behind, self._near, self._limit = life, target, behind, near, limit
        self.sent = bytearray()
        self._inet = self._listener = socket.socket()  # kept where it does not listen: others may not have the port
        self._inet.bind((HERE, 0))
        self.port: int = self._inet.getsockname()[1]
        if near:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(_near(self.port))
        self._listener.listen()
        life.listeners.append(self._listener)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                self._listener.close()
                return
            try:
                listener = self._called()
            except OSError:  # nobody listens there any more
                caller.close()
                continue
            ends = {"caller": caller, "listener": listener}
            source, sink = ends.pop(self._behind), ends.popitem()[1]
            flow = Flow(source, sink, self.sent, self._limit)
            with self._life.lock:
                self._life.flows.append(flow)
                if self._life.ended:
                    self._life.end()
            threading.Thread(target=self._answers, args=(sink, source), daemon=True).start()
            threading.Thread(target=self._counted, args=(flow,), daemon=True).start()

    def _called(self) -> socket.socket:
        if not self._near:
            return socket.create_connection((HERE, self._target))
        listener = socket.socket(socket.AF_UNIX)
        listener.connect(_near(self._target))
        return listener

    def _answers(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def _counted(self, flow: Flow) -> None:
        life, going = self._life, True
        while going:
            select.select([flow.source], [], [])
            with life.lock, contextlib.suppress(OSError):
                going = not life.ended and flow.pass_on()
                if flow.full:
                    life.end()


def _near(port: int) -> str:
    return f"\0tokenyard/{HERE}/{port}"
