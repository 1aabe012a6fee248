"""Nets: circles of both forms in one process, over socket pairs, or over wires that pass bytes on in random pieces."""

import random
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch

from experts.epoch.agreement import Row
from experts.exchange.links.circle import Circle, Lines, Peer, Rows, Sizes, Trouble
from experts.exchange.links.frame import FORMAT, ROW, Frame, Kind
from experts.exchange.links.native import native_lines
from experts.exchange.links.plain import PlainLines
from tests.patience import PATIENCE

FORMS = ("native", "plain")
MIXES = [(one, other) for one in FORMS for other in FORMS]
SIZES = Sizes(hidden=4, top_k=2, element=4, slots_per_rank=3, experts=6, budget=64)
PIECES = (1, 2, 63, 64, 65, 1000, 1 << 16)  # bytes that a wire passes on at most at a time
assert FORMAT == 1, "the bytes in these tests are of format 1"


@cache
def has_native() -> bool:
    """Whether this process has C kernels."""
    return native_lines() is not None


def lines_of(form: str) -> Lines:
    """A worker's lines. Skips the test where they can't be."""
    if form == "plain":
        return PlainLines()
    native = native_lines()
    if native is None:
        pytest.skip("no C kernels")
    return native


def incarnation(member: int) -> int:
    """Of a member of a net."""
    return 10 + member


class Net:
    """Members, each of its form, with a link for each pair; circles over them for any epoch."""

    def __init__(self, forms: Sequence[str], sizes: Sizes = SIZES, ranks: Sequence[int] | None = None) -> None:
        """ranks: as `Lines.circle` has them; None: all hold experts."""
        self.size, self.sizes = len(forms), sizes
        self.ranks = list(range(self.size)) if ranks is None else list(ranks)
        self.lines = [lines_of(form) for form in forms]
        self.peers: list[list[Peer | None]] = [[None] * self.size for _ in forms]
        self.wires: list[threading.Thread] = []

    def join(self, one: int, other: int, pieces: random.Random | None = None, buffer: int = 0) -> None:
        """Give a pair its link.

        pieces: passes bytes on in pieces of random sizes
        buffer: bytes of the sockets' buffers, 0 = the system's
        """
        left, right = socket.socketpair()
        if pieces is not None:
            near = right
            far, right = socket.socketpair()
            self.wires += [_passed_on(near, far, pieces.random()), _passed_on(far, near, pieces.random())]
        for end in (left, right):
            if buffer:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        self.peers[one][other] = self.peer(one, left, other)
        self.peers[other][one] = self.peer(other, right, one)

    def peer(self, member: int, connection: socket.socket, other: int) -> Peer:
        """A member's end of a link."""
        mine, theirs = incarnation(member), incarnation(other)
        return self.lines[member].peer(connection, mine, theirs, self.sizes.most_bytes)

    def join_all(self, pieces: random.Random | None = None, buffer: int = 0) -> "Net":
        """Give each pair its link."""
        for one in range(self.size):
            for other in range(one + 1, self.size):
                self.join(one, other, pieces, buffer)
        return self

    def circle(self, member: int, epoch: int = 1, patience: float = PATIENCE) -> Circle:
        """A member's circle."""
        return self.lines[member].circle(epoch, self.peers[member], member, self.ranks, self.sizes, patience)

    def circles(self, epoch: int = 1, patience: float = PATIENCE) -> list[Circle]:
        """Of all members."""
        return [self.circle(member, epoch, patience) for member in range(self.size)]

    def close(self) -> None:
        """End all links."""
        for peer in [peer for peers in self.peers for peer in peers if peer is not None]:
            peer.close()
        for wire in self.wires:
            wire.join(PATIENCE)
            assert not wire.is_alive()


@contextmanager
def net_of(*args: Any, pieces: random.Random | None = None, buffer: int = 0, **named: Any) -> Iterator[Net]:
    """A net whose pairs are all joined."""
    net = Net(*args, **named).join_all(pieces, buffer)
    try:
        yield net
    finally:
        net.close()


def _passed_on(source: socket.socket, target: socket.socket, seed: float) -> threading.Thread:
    chosen = random.Random(seed)

    def work() -> None:
        try:
            while data := source.recv(chosen.choice(PIECES)):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:  # the target's other end was shut down
            source.shutdown(socket.SHUT_RDWR)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


class Stranger:
    """The far end of a member's only link, which sends what it likes. It is member 1 of two."""

    def __init__(
        self, form: str, sizes: Sizes = SIZES, ranks: Sequence[int] = (0, 1), patience: float = PATIENCE
    ) -> None:
        self.net = Net([form, "plain"], sizes, ranks)
        left, self.link = socket.socketpair()
        self.net.peers[0][1] = self.net.peer(0, left, 1)
        self.circle = self.net.circle(0, patience=patience)
        self.sent = 0

    def frame(self, kind: int, body: bytes = b"", **named: Any) -> bytes:
        """A frame of epoch 1 that is as it should be, but for what is named."""
        found: dict[str, int] = {
            "sequence": self.sent, "step": 0, "size": len(body), "epoch": 1, "version": 0,
            "rows": len(body) // ROW.size if kind == Kind.HEADER else 0, "incarnation": incarnation(1), "layer": 0,
            "kind": kind,
        }  # fmt: skip
        self.sent += 1
        return Frame(**(found | named)).pack() + body

    def send(self, kind: int, body: bytes = b"", **named: Any) -> None:
        """See `frame`."""
        self.link.sendall(self.frame(kind, body, **named))

    def close(self) -> None:
        """Both ends."""
        self.link.close()
        for peer in self.net.peers[0]:
            if peer is not None:
                peer.close()


@contextmanager
def stranger(*args: Any, **named: Any) -> Iterator[Stranger]:
    """One that is closed at the end."""
    found = Stranger(*args, **named)
    try:
        yield found
    finally:
        found.close()


def together(*work: Callable[[], Any]) -> list[Any]:
    """Run all at once, each in a thread; their results. The first error is raised."""
    running = [begun(one) for one in work]
    for one in wait(running, PATIENCE, FIRST_EXCEPTION).done:
        one.result()
    return [one.result(0) for one in running]


def begun(work: Callable[..., Any], *args: Any) -> Future[Any]:
    """What a thread of its own is doing."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(work(*args))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done


def trouble_of(work: Callable[..., Any], *args: Any) -> Trouble:
    """What a call raises."""
    with pytest.raises(Trouble) as raised:
        work(*args)
    return raised.value


def row(epoch: int = 1, step: int = 0, version: int = 0, decode: int = 0) -> Row:
    """A member's row of a header."""
    return Row(epoch, step, version, decode, 0, 0, epoch)


def some_rows(tokens: int, sizes: Sizes = SIZES, seed: int = 0) -> Rows:
    """A source's tokens; some ids are -1."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, sizes.experts, (tokens, sizes.top_k), generator=generator, dtype=torch.int32)
    x = torch.randn(tokens, sizes.hidden, generator=generator).to(sizes.dtype)
    return Rows(x, ids, torch.rand(tokens, sizes.top_k, generator=generator))
