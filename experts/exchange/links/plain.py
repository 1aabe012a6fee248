"""The plain form of circles, in Python, for machines without C kernels: tokens go out and come in with numpy and torch.

A body of ROWS: slots int32 [n, K], weights float32 [n, K], x [n, H]. One of SUMS: [n, H] in the activations' dtype. One of
IDS: int16 [n, K]. Each rank sums in float32 and rounds once; sources sum in float32, in the order of members, so that
equal inputs give equal bits. Shape letters: T own tokens, N rows that arrived here, n rows of a frame, H hidden, K top-k.
"""

import socket
import threading
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from experts.exchange.links.circle import Circle, Peer, Rows, Sizes, Trouble
from experts.exchange.links.frame import Kind, Outcome
from experts.exchange.links.plain_frames import FrameCircle, under_way
from experts.exchange.links.plain_peer import Moment, PlainPeer
from experts.exchange.links.room import Room
from experts.exchange.routing import Routing, Tables
from experts.exchange.wire import ExpertBatch
from experts.placement import IntArray

Array = npt.NDArray[Any]


class PlainLines:
    """One worker's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def peer(self, connection: socket.socket, incarnation: int, theirs: int, most_bytes: int) -> PlainPeer:
        return PlainPeer(self._lock, connection, incarnation, theirs, most_bytes)

    def circle(
        self, epoch: int, peers: Sequence[Peer | None], me: int, ranks: Sequence[int], sizes: Sizes, patience: float
    ) -> Circle:
        return _PlainCircle(self._lock, epoch, cast(Sequence[PlainPeer | None], peers), me, ranks, sizes, patience)


class _PlainCircle(FrameCircle):
    def __init__(
        self, lock: threading.Lock, epoch: int, peers: Sequence[PlainPeer | None], me: int, ranks: Sequence[int],
        sizes: Sizes, patience: float,
    ) -> None:  # fmt: skip
        super().__init__(lock, epoch, peers, me, patience)
        self._sizes, self._holders = sizes, [m for m, rank in enumerate(ranks) if rank >= 0 and m != me]
        self._step, self._version, self._turn = 0, 0, 0
        self._whole = False  # every expert goes to its home slot
        self._most: Sequence[int] = (0,) * len(peers)  # tokens of each member
        self._sources: list[int] = []  # other members that bring tokens
        self._counts = [0] * len(peers)  # rows that the last `collect` got of each
        self._tokens, self._routing = 0, Routing([], {}, {}, np.empty((0, sizes.top_k), np.int32), 1)
        self._room = Room(sizes)
        self._look_at_room()

    def step(self, step: int, version: int, room: Sequence[int], turn: int | None) -> None:
        self._step, self._version, self._turn, self._whole = step, version, turn or 0, turn is None
        self._most, self._sources = room, [m for m, most in enumerate(room) if most > 0 and m != self._me]
        if self._room.grow(room):
            self._look_at_room()

    @under_way
    def dispatch(self, layer: int, rows: Rows, tables: Tables, slots: torch.Tensor | None) -> None:
        self._send_rows(layer, rows, tables, slots)
        self._run((), self._deadline())

    @under_way
    def collect(self, layer: int, own: Rows | None) -> ExpertBatch:
        self._run(self._sources, self._deadline())
        counts, done = [0] * self._size, 0
        for member in range(self._size):
            if member == self._me and own is not None:
                counts[member] = self._keep_own(own, done)
            elif member in self._sources:
                counts[member] = self._keep_rows(member, layer, done)
            done += counts[member]
        self._counts = counts
        return self._room.batch(tuple(counts))

    @under_way
    def give_back(self, layer: int, y: torch.Tensor) -> None:
        moment, done = self._moment(Kind.SUMS, layer), 0
        sums = _words(y.to(self._sizes.dtype))
        for member, count in enumerate(self._counts):
            if count and member != self._me:
                self._add(member, moment, count, _flat(sums[done : done + count]))
            done += count
        self._run((), self._deadline())

    @under_way
    def sum(self, layer: int, own: torch.Tensor | None) -> torch.Tensor:
        return self._receive_sums(layer, own)

    @under_way
    def ask(self, layer: int, rows: Rows, tables: Tables, slots: torch.Tensor | None) -> torch.Tensor:
        self._send_rows(layer, rows, tables, slots)
        return self._receive_sums(layer, None)

    @under_way
    def ids(self, layer: int, mine: torch.Tensor) -> dict[int, torch.Tensor]:
        moment, top_k = self._moment(Kind.IDS, layer), self._sizes.top_k
        for member in self._sources:
            self._add(member, moment, mine.shape[0], *_pieces(mine.numpy()))
        self._run(self._sources, self._deadline())
        everyone = {self._me: mine}
        for member in self._sources:
            head, peer = self._take(member, moment), self._peers[member]
            fits = head.rows <= self._most[member] and head.size == head.rows * top_k * 2
            if not fits or not _within(ids := peer.body.view(np.int16), self._sizes.experts):
                raise Trouble(Outcome.ASTRAY, member, 0, head)
            everyone[member] = torch.from_numpy(ids.reshape(head.rows, top_k).copy())
            peer.drop()
        return dict(sorted(everyone.items()))

    def _moment(self, kind: Kind, layer: int) -> Moment:
        return Moment(kind, self._step, layer, self._version)

    def _send_rows(self, layer: int, rows: Rows, tables: Tables, slots: torch.Tensor | None) -> None:
        """Send each member with experts the rows that are for it, which may be none, as far as they go at once."""
        routing = (
            tables.route_one(layer, rows.ids, self._turn, self._whole)
            if slots is None
            else tables.routed(slots.numpy())
        )
        self._routing, self._tokens = routing, rows.x.shape[0]
        moment, x, weights = self._moment(Kind.ROWS, layer), _words(rows.x), rows.weights.numpy()
        for member in self._holders:
            tokens = routing.rows[member]
            parts = routing.local_slots(member), _chosen(weights, tokens), _chosen(x, tokens)
            self._add(member, moment, len(tokens), *_pieces(*parts))

    def _keep_own(self, own: Rows, done: int) -> int:
        """Put this member's own rows behind those that are done; how many."""
        tokens = self._routing.rows[self._me]
        here = slice(done, done + len(tokens))
        self._slots[here] = self._routing.local_slots(self._me)
        own.weights.numpy().take(tokens, axis=0, out=self._weights[here], mode="clip")  # "raise" would copy once more
        _words(own.x).take(tokens, axis=0, out=self._x[here], mode="clip")
        return len(tokens)

    def _keep_rows(self, member: int, layer: int, done: int) -> int:
        """Put the rows that came from a member behind those that are done; how many. Raises Trouble."""
        head, sizes, peer = self._take(member, self._moment(Kind.ROWS, layer)), self._sizes, self._peers[member]
        n, pairs = head.rows, 4 * head.rows * sizes.top_k
        fits = n <= self._most[member] and head.size == n * sizes.row_bytes
        if fits and n:
            here, body = slice(done, done + n), peer.body
            slots = body[:pairs].view(np.int32).reshape(n, -1)
            fits = _within(slots, sizes.slots_per_rank)
            self._slots[here] = slots
            self._weights[here] = body[pairs : 2 * pairs].view(np.float32).reshape(n, -1)
            self._x[here] = body[2 * pairs :].view(self._x.dtype).reshape(n, -1)
        if not fits:
            raise Trouble(Outcome.ASTRAY, member, 0, head)
        peer.drop()
        return n

    def _receive_sums(self, layer: int, own: torch.Tensor | None) -> torch.Tensor:
        """Wait for what was sent to be answered, and add it up. Raises Trouble."""
        moment, rows, hidden = self._moment(Kind.SUMS, layer), self._routing.rows, self._sizes.hidden
        awaited = [member for member in self._holders if len(rows[member])] if self._tokens else []
        self._run(awaited, self._deadline())
        sums = torch.zeros((self._tokens, hidden), dtype=torch.float32)
        for member in self._routing.members:
            if member == self._me and own is not None:
                self._add_up(sums, rows[member], own)
            elif member in awaited:
                head, peer, n = self._take(member, moment), self._peers[member], len(rows[member])
                if head.rows != n or head.size != n * self._sizes.x_bytes:
                    raise Trouble(Outcome.ASTRAY, member, 0, head)
                part = torch.from_numpy(peer.body).view(self._sizes.dtype).view(n, hidden)
                self._add_up(sums, rows[member], part.float())
                peer.drop()
        return sums

    def _add_up(self, sums: torch.Tensor, tokens: IntArray, part: torch.Tensor) -> None:
        if len(tokens) == self._tokens:
            sums.add_(part)
        else:
            sums.index_add_(0, torch.from_numpy(tokens), part)

    def _look_at_room(self) -> None:
        room = self._room
        self._x: Array = _words(room.x)
        self._slots: Array = room.slots.numpy()
        self._weights: Array = room.weights.numpy()


def _within(numbers: Array, end: int) -> bool:
    """Whether all are from -1 on and below `end`."""
    return numbers.size == 0 or bool(numbers.min() >= -1 and numbers.max() < end)


def _words(x: torch.Tensor) -> Array:
    """The same memory for numpy, which knows no bfloat16: words of as many bytes."""
    return x.numpy() if x.dtype == torch.float32 else x.view(torch.int16).numpy()


def _chosen(rows: Array, tokens: IntArray) -> Array:
    """Some rows; no copy where they are all."""
    return rows if len(tokens) == len(rows) else rows.take(tokens, axis=0)


def _pieces(*arrays: Array) -> list[memoryview]:
    """Their bytes, as they lie in memory."""
    return [_flat(array) for array in arrays if array.size]


def _flat(array: Array) -> memoryview:
    return array.data.cast("B")
