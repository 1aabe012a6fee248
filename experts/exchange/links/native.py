"""The C form of circles: one call for each dispatch, collect, return and sum."""

import ctypes
import socket
import time
import weakref
from collections.abc import Sequence
from ctypes import POINTER, byref, c_int16, c_int32, c_int64, c_uint8, c_uint32, c_uint64, c_void_p
from typing import Any

import torch

from experts.epoch.agreement import Row
from experts.exchange.links.circle import Circle, Peer, Rows, Sizes, Trouble
from experts.exchange.links.frame import Frame, Outcome
from experts.exchange.links.room import Room
from experts.exchange.routing import Tables
from experts.exchange.wire import ExpertBatch
from experts.kernels.loaded import loaded

_ROW = len(Row._fields)


class _Frame(ctypes.Structure):
    _fields_ = (
        *((name, c_uint64) for name in ("sequence", "step", "bytes")),
        *((name, c_uint32) for name in ("epoch", "version", "rows", "incarnation")),
        ("layer", ctypes.c_uint16), ("kind", c_uint8), ("flags", c_uint8), ("magic", c_uint32), ("unused", c_uint64 * 2),
    )  # fmt: skip


class _Finding(ctypes.Structure):
    _fields_ = (("member", c_int32), ("error", c_int32), ("found", _Frame))


class _Batch(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "ids", "weights", "slots", "table")),
        ("tokens", c_int32),
    )


class NativeLines:
    """One worker's."""

    def __init__(self, functions: Any) -> None:
        """functions: of kernels/links.c, by name without their common beginning."""
        self._do = functions
        self._hub = functions.hub()
        if not self._hub:
            raise MemoryError("no memory for links")
        _when_gone(self, functions.free_hub, self._hub)

    def peer(self, connection: socket.socket, incarnation: int, theirs: int, most_bytes: int) -> "_NativePeer":
        return _NativePeer(self, connection, self._do.peer(connection.fileno(), incarnation, theirs, most_bytes))

    def circle(
        self, epoch: int, peers: Sequence[Peer | None], me: int, ranks: Sequence[int], sizes: Sizes, patience: float
    ) -> Circle:
        return _NativeCircle(self, epoch, peers, me, ranks, sizes, patience)


def _when_gone(thing: object, free: Any, *args: Any) -> None:
    """Not at the process's end, when other threads may still be in calls."""
    weakref.finalize(thing, free, *args).atexit = False


class _NativePeer:
    """Keeps its lines and its connection."""

    def __init__(self, lines: NativeLines, connection: socket.socket, address: int) -> None:
        if not address:
            raise MemoryError("no memory for a link")
        self._lines, self._connection, self.address = lines, connection, address
        _when_gone(self, _free_peer, lines, connection, address)

    def usable(self, epoch: int) -> bool:
        lines = self._lines
        return bool(lines._do.usable(lines._hub, self.address, epoch))

    def died(self) -> None:
        self._lines._do.died(self._lines._hub, self.address)

    def close(self) -> None:
        try:
            self._connection.shutdown(socket.SHUT_RDWR)  # it is closed when nobody has it any more
        except OSError:
            return  # by the other side already


def _free_peer(lines: NativeLines, connection: socket.socket, address: int) -> None:
    connection.close()
    lines._do.free_peer(address)


class _NativeCircle(Circle):
    def __init__(
        self, lines: NativeLines, epoch: int, peers: Sequence[Peer | None], me: int, ranks: Sequence[int], sizes: Sizes,
        patience: float,
    ) -> None:  # fmt: skip
        self._lines, self._do, self._peers, self._me, self._sizes = lines, lines._do, list(peers), me, sizes
        self._patience = round(patience * 1e9)
        self._size = size = len(peers)
        links = (c_void_p * size)(*(None if peer is None else peer.address for peer in peers))  # type: ignore[attr-defined]
        self._circle = self._do.circle(lines._hub, size, me, epoch, links)
        members = [-1] * (max(ranks, default=-1) + 1)
        for member, rank in enumerate(ranks):
            if rank >= 0:
                members[rank] = member
        self._ranks, self._members = (c_int32 * size)(*ranks), (c_int32 * max(len(members), 1))(*members)
        self._traffic = self._do.traffic(
            sizes.hidden,
            sizes.top_k,
            sizes.element,
            sizes.slots_per_rank,
            sizes.experts,
            size,
            self._ranks,
            self._members,
        )
        if not self._circle or not self._traffic:
            raise MemoryError("no memory for links")
        _when_gone(self, _free_circle, lines, self._circle, self._traffic)
        self._missing = ctypes.cast(self._do.missing(self._circle), POINTER(c_uint8 * size)).contents
        self._bytes = c_uint64.from_address(self._do.bytes(self._circle))
        self._rows = (c_int64 * (size * _ROW))()
        self._room, self._counts = (c_int32 * size)(), (c_int32 * size)()
        self._finding, self._batch = _Finding(), _Batch()
        self._at_finding, self._at_batch = byref(self._finding), byref(self._batch)
        self._arrived = Room(sizes)
        self._look_at_room()

    def meet(self, whom: Sequence[int], say: Sequence[int], until: int) -> None:
        flags = [(c_uint8 * self._size)(*(m in members for m in range(self._size))) for members in (whom, say)]
        self._check(self._do.meet(self._circle, *flags, until, self._at_finding))

    def header(self, row: Row, leader: int | None) -> list[Row]:
        own = self._me * _ROW
        self._rows[own : own + _ROW] = list(row)
        until = time.monotonic_ns() + self._patience
        self._check(
            self._do.header(
                self._circle, self._rows, row.step, -1 if leader is None else leader, until, self._at_finding
            )
        )
        numbers = self._rows[:]
        return [Row(*numbers[at : at + _ROW]) for at in range(0, len(numbers), _ROW)]

    def idle(self, until: int | None) -> bool:
        return bool(self._do.idle(self._circle, -1 if until is None else until))

    def step(self, step: int, version: int, room: Sequence[int], turn: int | None) -> None:
        self._do.step(self._traffic, step, version, self._patience, turn or 0, turn is None)
        self._room[:] = list(room)
        if self._arrived.grow(room):
            self._look_at_room()

    def dispatch(self, layer: int, rows: Rows, tables: Tables, slots: torch.Tensor | None) -> None:
        self._hand_over(layer, rows, tables, slots)
        self._check(self._do.dispatch(self._circle, self._traffic, layer, self._at_batch, self._at_finding))

    def collect(self, layer: int, own: Rows | None) -> ExpertBatch:
        outcome = self._do.collect(
            self._circle, self._traffic, layer, self._room, None if own is None else self._at_batch, *self._at_room,
            self._counts, self._at_finding,
        )  # fmt: skip
        if outcome:
            self._check(outcome)
        return self._arrived.batch(tuple(self._counts[:]))

    def give_back(self, layer: int, y: torch.Tensor) -> None:
        outcome = self._do.give_back(self._circle, self._traffic, layer, y.data_ptr(), self._counts, self._at_finding)
        if outcome:
            self._check(outcome)

    def sum(self, layer: int, own: torch.Tensor | None) -> torch.Tensor:
        sums = torch.empty((self._batch.tokens, self._sizes.hidden), dtype=torch.float32)
        at_own = None if own is None else own.data_ptr()
        self._check(self._do.sum(self._circle, self._traffic, layer, at_own, sums.data_ptr(), self._at_finding))
        return sums

    def ask(self, layer: int, rows: Rows, tables: Tables, slots: torch.Tensor | None) -> torch.Tensor:
        sums = torch.empty(rows.x.shape, dtype=torch.float32)
        self._hand_over(layer, rows, tables, slots)
        outcome = self._do.ask(self._circle, self._traffic, layer, self._at_batch, sums.data_ptr(), self._at_finding)
        if outcome:
            self._check(outcome)
        return sums

    def ids(self, layer: int, mine: torch.Tensor) -> dict[int, torch.Tensor]:
        top_k = self._sizes.top_k
        everyone = {m: torch.empty((most, top_k), dtype=torch.int16) for m, most in enumerate(self._room) if most > 0}
        everyone[self._me] = mine
        where = (POINTER(c_int16) * self._size)()
        for member, ids in everyone.items():
            where[member] = ctypes.cast(ids.data_ptr(), POINTER(c_int16))
        self._counts[self._me] = mine.shape[0]
        self._check(self._do.ids(self._circle, self._traffic, layer, self._room, self._counts, where, self._at_finding))
        return {member: ids[: self._counts[member]] for member, ids in sorted(everyone.items())}

    @property
    def bytes_sent(self) -> int:
        return self._bytes.value

    def missing(self) -> tuple[int, ...]:
        return tuple(member for member, waits in enumerate(self._missing) if waits)

    def wake(self) -> None:
        self._do.wake(self._circle)

    def abort(self) -> None:
        self._do.abort(self._circle)

    def _hand_over(self, layer: int, rows: Rows, tables: Tables, slots: torch.Tensor | None) -> None:
        batch, x = self._batch, rows.x
        batch.x, batch.ids, batch.weights = x.data_ptr(), rows.ids.data_ptr(), rows.weights.data_ptr()
        batch.tokens, batch.table = x.shape[0], tables.kernel_tables[layer]
        batch.slots = None if slots is None else slots.data_ptr()

    def _check(self, outcome: int) -> None:
        if outcome:
            finding = self._finding
            found = Frame.unpack(bytes(finding.found)) if outcome in (Outcome.MALFORMED, Outcome.ASTRAY) else None
            raise Trouble(Outcome(outcome), finding.member, finding.error, found)

    def _look_at_room(self) -> None:
        room = self._arrived
        self._at_room = room.x.data_ptr(), room.slots.data_ptr(), room.weights.data_ptr()


def _free_circle(lines: NativeLines, circle: int, traffic: int) -> None:
    lines._do.free_circle(circle)
    lines._do.free_traffic(traffic)


def native_lines() -> NativeLines | None:
    """Of this process's kernels; None where there are none."""
    kernels = loaded()
    return None if kernels is None else NativeLines(kernels.links)
