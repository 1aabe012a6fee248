"""PlainPeer: one connection of the plain form. Frames go out and come in as far as they do without waiting; knows no tokens.

Its methods but those of Peer are for who holds the lock of its lines.
"""

import contextlib
import errno
import socket
import threading
import weakref
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from experts.exchange.links.frame import HEAD_BYTES, MAGIC, MOST_ROWS, ROW, Frame, Kind

_UNUSED = bytes(16)  # at the end of a head
_PIECES = 64  # of what is on its way out, in one call
_NOTED = 8  # epochs whose ends are remembered


@dataclass(frozen=True, slots=True)
class Moment:
    """What a frame is about."""

    kind: Kind
    step: int = 0
    layer: int = 0
    version: int = 0


class PlainPeer:
    """One link.

    fd: of the connection
    error: errno that ended it, 0 = none, -1 = the other end closed it
    malformed: what came is no frame
    ready: a whole frame has come that nobody took
    head: of that frame
    over, left: the last epochs that the other end broke, and that it left; those that it prepared and gave up are left
        before the one under way
    """

    def __init__(
        self, lock: threading.Lock, connection: socket.socket, incarnation: int, theirs: int, most_bytes: int
    ) -> None:
        """lock: of its lines
        incarnation, theirs: of both ends
        most_bytes: of a body that is taken
        """
        connection.setblocking(False)
        self._lock, self._connection = lock, connection
        self._incarnation, self._theirs, self._most = incarnation, theirs, most_bytes
        self.fd = connection.fileno()
        self.error, self.malformed, self.ready = 0, False, False
        self.over: deque[int] = deque(maxlen=_NOTED)
        self.left: deque[int] = deque(maxlen=_NOTED)
        self._sent = self._received = 0  # frames
        self._out: list[memoryview] = []
        self.head = Frame(0, 0, 0, 0, 0, 0, 0, 0, 0)
        self._head_room = memoryview(bytearray(HEAD_BYTES))
        self._got_head = 0  # bytes of a head that is coming in, maybe behind a frame that is ready
        self._got_body = -1  # bytes of the body that is coming in, -1 = its head has not come
        self._make_room(ROW.size)
        weakref.finalize(self, connection.close).atexit = False  # at the end other threads may still be in calls

    def usable(self, epoch: int) -> bool:
        """See Peer."""
        with self._lock:
            self.read_on()
            self._drop_before(epoch)
            return not self.error

    def died(self) -> None:
        """See Peer."""
        with self._lock:
            self.read_on()
            self.end(errno.EOWNERDEAD)

    def close(self) -> None:
        """See Peer."""
        with contextlib.suppress(OSError):  # by the other side already
            self._connection.shutdown(socket.SHUT_RDWR)  # it is closed when nobody has it any more

    def end(self, error: int, how: int = socket.SHUT_RDWR) -> None:
        """Shut the connection down, with this errno unless it has ended before: the other end must hear of it, or it would take
        the connection for one of the next epoch."""
        self.error = self.error or error
        with contextlib.suppress(OSError):  # by the other side already
            self._connection.shutdown(how)

    @property
    def whole(self) -> bool:
        """Whether all that was added has left."""
        return not self._out

    @property
    def body(self) -> npt.NDArray[np.uint8]:
        """Of the frame that is ready; valid until it is dropped."""
        return self._body[: self.head.size]

    def add(self, epoch: int, moment: Moment, rows: int, *pieces: memoryview) -> int:
        """Put a frame behind what is on its way; its bytes. The pieces of its body must stay as they are until it has left."""
        size = sum(piece.nbytes for piece in pieces)
        head = Frame(
            self._sent, moment.step, size, epoch, moment.version, rows, self._incarnation, moment.layer, moment.kind
        )
        self._sent += 1
        self._out.append(memoryview(head.pack()))
        self._out += pieces
        return HEAD_BYTES + size

    def flush(self) -> bool:
        """Send what goes without waiting; whether nothing is left to do."""
        while self._out and not self.error:
            try:
                self._forget(self._connection.sendmsg(self._out[:_PIECES]))
            except BlockingIOError:
                return False
            except OSError as error:
                self.end(error.errno or errno.EIO)
        return True

    @property
    def reads(self) -> bool:
        """Whether something may come that `read_on` takes."""
        return not self.error and not (self.ready and self._got_head == HEAD_BYTES)

    def read_on(self) -> None:
        """Read until a frame is ready or nothing is there. What says that the other end has ended an epoch may lie behind a
        frame that is ready: then up to the next other head."""
        ahead = self.ready
        while self.reads and self.ready == ahead:
            if self._got_body < 0:
                count = self._received_into(self._head_room[self._got_head :])
                self._got_head += count
                if self._got_head == HEAD_BYTES:
                    self._head_came()
            else:
                count = self._received_into(self._body_room[self._got_body : self.head.size])
                self._got_body += count
                self._body_came()
            if not count:
                return

    def has_frame(self, epoch: int) -> bool:
        """Whether a frame of an epoch waits to be taken; older ones are dropped on the way."""
        self._drop_before(epoch)
        return self.ready and self.head.epoch == epoch

    def fits(self, moment: Moment) -> bool:
        """Whether the frame that is ready is of a moment."""
        head = self.head
        if head.kind != moment.kind:
            return False
        return moment.kind in (Kind.MEET, Kind.HEADER) or (
            (head.step, head.layer, head.version) == (moment.step, moment.layer, moment.version)
        )

    def drop(self) -> None:
        """The frame that is ready has been taken."""
        self.ready = False
        if self._got_head == HEAD_BYTES:
            self._head_came()

    def _drop_before(self, epoch: int) -> None:
        while self.ready and self.head.epoch < epoch:
            self.drop()
            self.read_on()

    def _forget(self, sent: int) -> None:
        """So many bytes have left."""
        out, whole = self._out, 0
        while whole < len(out) and sent >= len(out[whole]):
            sent -= len(out[whole])
            whole += 1
        del out[:whole]
        if sent:
            out[0] = out[0][sent:]

    def _received_into(self, room: memoryview) -> int:
        """Bytes that came; 0 = nothing is there, or the connection has ended."""
        try:
            count = self._connection.recv_into(room)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.end(error.errno or errno.EIO)
            return 0
        if not count:
            self.error = -1
        return count

    def _head_came(self) -> None:
        """A control frame is noted and forgotten, whatever is before it; any other waits for what is ready to be taken."""
        head = Frame.unpack(self._head_room)
        fits, control = self._wellformed(head), head.kind in (Kind.ABORT, Kind.LEAVE)
        if self.ready and not (fits and control):
            return
        self._got_head = 0
        if fits and control:
            (self.over if head.kind == Kind.ABORT else self.left).append(head.epoch)
            self._received += 1
            return
        self.head = head
        if not fits:
            self.malformed = True
            self.end(errno.EPROTO)
        elif head.size <= len(self._body_room) or self._make_more_room(head.size):
            self._got_body = 0
            self._body_came()

    def _body_came(self) -> None:
        """More of it, or its head."""
        if self._got_body == self.head.size:
            self.ready, self._got_body = True, -1
            self._received += 1

    def _make_more_room(self, count: int) -> bool:
        try:
            self._make_room(max(2 * len(self._body_room), count))
        except MemoryError:
            self.end(errno.ENOMEM)
            return False
        return True

    def _make_room(self, count: int) -> None:
        self._body: npt.NDArray[np.uint8] = np.empty(count, dtype=np.uint8)
        self._body_room = self._body.data

    def _wellformed(self, head: Frame) -> bool:
        if (head.magic, head.sequence, head.incarnation, head.flags) != (MAGIC, self._received, self._theirs, 0):
            return False
        if self._head_room[-len(_UNUSED) :] != _UNUSED:
            return False
        match head.kind:
            case Kind.HEADER:
                return head.size == head.rows * ROW.size and 0 < head.rows <= MOST_ROWS
            case Kind.IDS | Kind.ROWS | Kind.SUMS:
                return head.size <= self._most
            case Kind.MEET | Kind.ABORT | Kind.LEAVE:
                return head.size == 0
        return False
