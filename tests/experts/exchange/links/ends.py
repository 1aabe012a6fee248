"""Members without hubs: each with lines of its own, a socket pair between each two, and circles over them in any epoch."""

import fcntl
import socket
import struct
import termios
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from experts.exchange.block import BlockForm
from experts.exchange.links.circle import Circle, Peer, Rows, sizes_of
from experts.exchange.routing import Tables
from experts.exchange.split import SplitPolicy
from experts.placement import Placement
from tests.experts.exchange.groups import membership
from tests.experts.exchange.links.nets import lines_of
from tests.patience import PATIENCE

FORM = BlockForm(hidden=8, top_k=2, dtype=torch.float32)
BUDGET = 1 << 17


class End:
    """A member that brings tokens and holds two experts: those of numbers 2 * member and 2 * member + 1."""

    def __init__(self, member: int, size: int, form: str) -> None:
        self.lines, self.member = lines_of(form), member
        self.sizes = sizes_of(FORM, Placement.first(1, 2 * size, size, 2), BUDGET)
        self.peers: list[Peer | None] = [None] * size
        self.sockets: dict[int, socket.socket] = {}

    def connect(self, other: int, connection: socket.socket) -> None:
        self.sockets[other] = connection
        self.peers[other] = self.lines.peer(connection, self.member, other, self.sizes.most_bytes)

    def circle(self, epoch: int, room: int = BUDGET, patience: float = PATIENCE) -> Circle:
        """In its first step. room: most tokens of each member."""
        size = len(self.peers)
        made = self.lines.circle(epoch, self.peers, self.member, list(range(size)), self.sizes, patience)
        made.step(0, 0, [room] * size, self.member)
        return made


def ends(forms: Sequence[str], send_buffer: int = 0) -> list[End]:
    """All connected to each other. forms: native or plain; send_buffer: bytes, 0 = as the system has it."""
    made = [End(member, len(forms), form) for member, form in enumerate(forms)]
    for a in made:
        for b in made[: a.member]:
            pair = socket.socketpair()
            for end, other, connection in ((a, b, pair[0]), (b, a, pair[1])):
                if send_buffer:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
                end.connect(other.member, connection)
    return made


def tables(size: int = 2) -> Tables:
    """Where the experts are."""
    return Tables(Placement.first(1, 2 * size, size, 2), membership(size, 0, colocate=True), SplitPolicy())


def rows_for(member: int, tokens: int) -> Rows:
    """Tokens whose experts are all a member's."""
    ids = torch.tensor([[2 * member, 2 * member + 1]], dtype=torch.int32).repeat(tokens, 1)
    x = torch.arange(tokens, dtype=torch.float32)[:, None].repeat(1, FORM.hidden)
    return Rows(x, ids, torch.ones(tokens, FORM.top_k))


def unread(connection: socket.socket) -> int:
    """Bytes that have come and were not read."""
    return int(struct.unpack("i", fcntl.ioctl(connection, termios.FIONREAD, b"\0" * 4))[0])


class Call:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call, self.error, self.result = call, None, None
        self.error: BaseException | None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def ended(self) -> BaseException | None:
        """What it raised, once it has ended."""
        self._thread.join(PATIENCE)
        assert not self.running, "a call hangs"
        return self.error
