"""FrameCircle: the calls of the plain form that know no tokens: meeting, headers, sleep, and an epoch's end.

Every wait is one poll over all peers and a descriptor that wakes, with a deadline; sends and receives of all peers go on in
the same loop, so that full buffers at both ends hold up nobody. Calls hold the lock of their lines but while they poll, so
that `abort` and `wake` may come from any thread.
"""

import contextlib
import errno
import functools
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from experts.epoch.agreement import Row
from experts.exchange.links.circle import Circle, Trouble
from experts.exchange.links.frame import ROW, Frame, Kind, Outcome
from experts.exchange.links.plain_peer import Moment, PlainPeer

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound="FrameCircle")
_NEWS = select.POLLIN | select.POLLHUP | select.POLLERR
_LONGEST = 1e6  # ms of one poll
_WAKE = (1).to_bytes(8, "little")  # what an eventfd takes


def under_way(work: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], R]:
    """Make a method a call of its circle: with the lock, ended before it begins where the circle is over."""

    @functools.wraps(work)
    def call(circle: C, *args: P.args, **named: P.kwargs) -> R:
        with circle._lock:
            circle._busy = circle._used = True
            try:
                if circle._over:
                    raise Trouble(Outcome.OVER)
                result = work(circle, *args, **named)
            except MemoryError:
                raise Trouble(Outcome.NO_MEMORY) from None
            finally:
                circle._missing = frozenset()
            circle._busy = False
            return result

    return call


class FrameCircle(Circle):
    """The links of one epoch's members."""

    def __init__(
        self, lock: threading.Lock, epoch: int, peers: Sequence[PlainPeer | None], me: int, patience: float
    ) -> None:
        """lock: of its lines
        patience: s, of every wait for peers but `meet` and `idle`
        """
        self._lock, self._epoch, self._me, self._size = lock, epoch, me, len(peers)
        self._peers = {member: peer for member, peer in enumerate(peers) if peer is not None}
        self._patience = round(patience * 1e9)
        self._missing: frozenset[int] = frozenset()
        self._over = False  # this end is out of the epoch
        self._busy = False  # a call is under way, or one has failed
        self._used = False  # there was one
        self._bytes = 0
        self._wake = _Wake()

    @under_way
    def meet(self, whom: Sequence[int], say: Sequence[int], until: int) -> None:
        moment = Moment(Kind.MEET)
        for member in say:
            self._add(member, moment, 0)
        self._run(whom, until)
        for member in whom:
            self._take(member, moment)
            self._peers[member].drop()

    @under_way
    def header(self, row: Row, leader: int | None) -> list[Row]:
        moment, until = Moment(Kind.HEADER, row.step), self._deadline()
        if leader is not None and leader != self._me:
            self._send_header([leader], moment, [row])
            self._run([leader], until)
            return self._take_header(leader, moment, self._size)
        if leader is None:
            self._send_header(self._peers, moment, [row])
        self._run(self._peers, until)
        rows = {member: self._take_header(member, moment, 1)[0] for member in self._peers} | {self._me: row}
        everyone = [rows[member] for member in range(self._size)]
        if leader is not None:
            self._send_header(self._peers, moment, everyone)
            self._run((), until)
        return everyone

    def idle(self, until: int | None) -> bool:
        with self._lock:
            try:
                while not self._over and not any(map(self._has_news, self._peers)):
                    poll = select.poll()
                    for peer in self._peers.values():
                        poll.register(peer.fd, select.POLLIN)
                    self._missing = frozenset(self._peers)
                    ready = self._sleep(poll, until)
                    if not ready or self._wake.fd in ready:
                        return self._over
                return True
            finally:
                self._missing = frozenset()

    @property
    def bytes_sent(self) -> int:
        return self._bytes

    def missing(self) -> tuple[int, ...]:
        return tuple(sorted(self._missing))

    def wake(self) -> None:
        self._wake.ring()

    def abort(self) -> None:
        with self._lock:
            first, self._over = not self._over, True
            moment = Moment(Kind.ABORT if self._busy else Kind.LEAVE)
            for member, peer in self._peers.items() if first else ():
                if peer.error:
                    continue
                # What a circle that was never used could not send, those that use the connection send.
                if (peer.whole or not self._busy) and (self._add(member, moment, 0) or not self._used):
                    continue
                peer.end(errno.ECONNABORTED, socket.SHUT_RDWR if self._busy else socket.SHUT_WR)
        self._wake.ring()

    def _deadline(self) -> int:
        return time.monotonic_ns() + self._patience

    def _add(self, member: int, moment: Moment, rows: int, *pieces: memoryview) -> bool:
        """Send a frame as far as it goes at once; whether all has left."""
        peer = self._peers[member]
        self._bytes += peer.add(self._epoch, moment, rows, *pieces)
        return peer.flush()

    def _run(self, awaited: Collection[int], until: int) -> None:
        """Until all that is on its way has left and a frame of this epoch has come from every member that is awaited;
        what these frames say is the caller's to check. Raises Trouble."""
        while not self._over:
            poll, late, missing = select.poll(), -1, set()
            for member, peer in self._peers.items():
                events = 0 if peer.flush() else select.POLLOUT
                if self._misses(member, member in awaited):
                    missing.add(member)
                if events or member in missing:
                    late = member
                if peer.reads:
                    events |= select.POLLIN
                if events:
                    poll.register(peer.fd, events)
            self._missing = frozenset(missing)
            if late < 0:
                return
            if not self._sleep(poll, until) and not self._over:
                raise Trouble(Outcome.LATE, late)
        raise Trouble(Outcome.OVER)

    def _misses(self, member: int, awaited: bool) -> bool:
        """Whether a frame is awaited that has not come. Raises Trouble for what matters to the call under way."""
        peer, epoch = self._peers[member], self._epoch
        missing = not peer.has_frame(epoch) and awaited
        if peer.malformed:
            raise Trouble(Outcome.MALFORMED, member, 0, peer.head)
        if epoch in peer.over:
            raise Trouble(Outcome.LEFT, member)
        needed = missing or not peer.whole
        if peer.error and needed:
            raise Trouble(Outcome.DEAD, member, peer.error)
        if needed and (epoch in peer.left or (peer.ready and peer.head.epoch > epoch)):
            raise Trouble(Outcome.LEFT, member)
        return missing

    def _has_news(self, member: int) -> bool:
        """Whether a member has opened a step, or is gone."""
        self._peers[member].flush()
        try:
            return not self._misses(member, True)
        except Trouble:
            return True

    def _send_header(self, members: Collection[int], moment: Moment, rows: list[Row]) -> None:
        body = memoryview(b"".join(ROW.pack(*row) for row in rows))
        for member in members:
            self._add(member, moment, len(rows), body)

    def _take_header(self, member: int, moment: Moment, count: int) -> list[Row]:
        """The rows that came from a member. Raises Trouble."""
        head, peer = self._take(member, moment), self._peers[member]
        if head.rows != count:
            raise Trouble(Outcome.ASTRAY, member, 0, head)
        rows = [Row(*numbers) for numbers in ROW.iter_unpack(peer.body.data)]
        peer.drop()
        return rows

    def _take(self, member: int, moment: Moment) -> Frame:
        """The head of the frame that came from a member. Raises Trouble for one of another moment."""
        peer = self._peers[member]
        if not peer.fits(moment):
            raise Trouble(Outcome.ASTRAY, member, 0, peer.head)
        return peer.head

    def _sleep(self, poll: select.poll, until: int | None) -> set[int]:
        """Without the lock, until a peer or this end's `wake` has something, or the deadline: none. Reads what has come."""
        poll.register(self._wake.fd, select.POLLIN)
        self._lock.release()
        try:
            found = _polled(poll, until)
        finally:
            self._lock.acquire()
        ready = {fd for fd, _ in found}
        if self._wake.fd in ready:
            self._wake.hush()
        if self._over:  # what has come is a later circle's, whose poll would not see it any more
            return ready
        news = {fd for fd, events in found if events & _NEWS}
        for peer in self._peers.values():
            if peer.fd in news:
                peer.read_on()
        return ready


def _polled(poll: select.poll, until: int | None) -> list[tuple[int, int]]:
    """until: on the monotonic clock, in ns."""
    if until is None:
        return poll.poll()
    while True:
        left = max(until - time.monotonic_ns(), 0) / 1e6
        found = poll.poll(min(left, _LONGEST))
        if found or left <= _LONGEST:
            return found


class _Wake:
    """A descriptor that can be read from when someone has rung."""

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self.fd = self._ring = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            pair = socket.socketpair()
            for end in pair:
                end.setblocking(False)
            self.fd, self._ring = (end.detach() for end in pair)
        for fd in {self.fd, self._ring}:
            weakref.finalize(self, os.close, fd).atexit = False

    def ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it rings already
            os.write(self._ring, _WAKE)

    def hush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 4096)
