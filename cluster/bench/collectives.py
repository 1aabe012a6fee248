"""What a layer's dispatch and combine, and a step's header, cost without experts' work: kinds of exchange in turn, in the
same processes.

The floor is a bare exchange in C of the same bytes between the same processes. One attention rank brings all tokens.
"""

import ctypes
import multiprocessing
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from experts.epoch.agreement import StepWish
from experts.epoch.membership import HERE, EpochRecord, Member, Membership
from experts.errors import UserError
from experts.exchange.base import Exchange, ExchangeOrder
from experts.exchange.block import BlockForm
from experts.exchange.doorbell import Doorbell
from experts.exchange.group import open_store
from experts.exchange.links.circle import Sizes, sizes_of
from experts.exchange.links.frame import HEAD_BYTES
from experts.exchange.links.hub import Hub
from experts.exchange.registry import exchange_for, exchange_kind
from experts.exchange.wire import Route
from experts.kernels.build import BuildFailed, library
from experts.placement import Placement

FLOOR = "floor"
_SOURCE = Path(__file__).parent / "floor.c"
_SLOTS = 64  # experts of a layer


@dataclass(frozen=True, slots=True)
class Case:
    """What is exchanged.

    experts: ranks that hold some
    kinds: of exchange, in turn, FLOOR among them
    layers: of one turn
    """

    experts: int
    batches: tuple[int, ...]
    hidden: int
    top_k: int
    kinds: tuple[str, ...]
    rounds: int
    layers: int

    @property
    def form(self) -> BlockForm:
        """Of the rows."""
        return BlockForm(self.hidden, self.top_k, torch.bfloat16)

    @property
    def placement(self) -> Placement:
        """Every expert once."""
        return Placement.first(1, _SLOTS, self.experts, -(-_SLOTS // self.experts))

    @property
    def turns(self) -> Iterator[tuple[int, str]]:
        """Batch and kind of each turn, in order."""
        for batch in self.batches:
            for _ in range(self.rounds):
                for kind in self.kinds:
                    yield batch, kind


class Turn(NamedTuple):
    """Of one rank, in ns: each layer and each header, none at ranks with experts; CPU time of the layers."""

    layers: list[int]
    headers: list[int]
    cpu: int


def measure(case: Case) -> list[dict[str, Any]]:
    """Per batch and kind: us a layer (p50, p99), CPU of all processes (us a layer), and us a header (p50). Raises UserError."""
    for kind in case.kinds:
        if kind == FLOOR:
            _floor()
        else:
            exchange_for("cpu", kind)
    spawn = multiprocessing.get_context("spawn")
    store, secret = open_store(HERE), secrets.token_hex(16)
    pipes = [spawn.Pipe() for _ in range(case.experts + 1)]
    ranks = [
        spawn.Process(target=_rank, args=(case, rank, secret, store.port, theirs), daemon=True)
        for rank, (_, theirs) in enumerate(pipes)
    ]
    try:
        for process in ranks:
            process.start()
        for _, theirs in pipes:
            theirs.close()  # so that the end of a rank is seen
        ours = [ours for ours, _ in pipes]
        ports = [pipe.recv() for pipe in ours]
        for pipe in ours:
            pipe.send(ports)
        found = [pipe.recv() for pipe in ours]
    except EOFError:
        raise RuntimeError("a rank has ended before its time: its output says why") from None
    finally:
        for process in ranks:
            process.kill()
        store.close()
    return [_line(case, batch, kind, found) for batch in case.batches for kind in case.kinds]


def _line(case: Case, batch: int, kind: str, found: list[list[Turn]]) -> dict[str, Any]:
    turns = [i for i, turn in enumerate(case.turns) if turn == (batch, kind)]
    took = np.concatenate([found[-1][i].layers for i in turns]) / 1e3
    headers = np.concatenate([found[-1][i].headers for i in turns]) / 1e3
    cpu = sum(rank[i].cpu for rank in found for i in turns) / 1e3 / (len(turns) * case.layers)
    return {
        "ranks": f"1+{case.experts}", "batch": batch, "kind": kind, "p50": round(float(np.percentile(took, 50)), 1),
        "p99": round(float(np.percentile(took, 99)), 1), "cpu": round(cpu, 1),
        **({"header": round(float(np.median(headers)), 1)} if len(headers) else {}),
    }  # fmt: skip


def _rank(case: Case, rank: int, secret: str, store: int, pipe: Connection) -> None:
    """A rank's process."""
    torch.set_num_threads(1)
    ask = rank == case.experts
    budget = max(case.batches)
    with ExitStack() as stack:
        hub = Hub(HERE, secret, rank, 0, sizes_of(case.form, case.placement, budget))
        stack.callback(hub.close)
        listener = stack.enter_context(_listener(secret)) if ask else None
        pipe.send(hub.port)
        ports = pipe.recv()
        turns: dict[str, Callable[[int], Turn]] = {}
        for kind in case.kinds:
            if kind == FLOOR:
                links = _accepted(listener, case.experts) if listener is not None else [_connected(secret, rank)]
                turns[kind] = partial(_floor_ask if ask else _floor_answer, case, rank, links)
            else:
                exchange = _joined(case, rank, kind, hub, ports, store)
                stack.callback(exchange.close)
                turns[kind] = partial(_exchange, case, exchange, ask)
        pipe.send([turns[kind](batch) for batch, kind in case.turns])
        pipe.recv()  # until it is killed


def _joined(case: Case, rank: int, kind: str, hub: Hub, ports: list[int], store: int) -> Exchange:
    members = Membership(
        1,
        tuple(
            Member(r, "attention" if r == case.experts else "expert", exchange_port=port)
            for r, port in enumerate(ports)
        ),
    )
    own = hub if exchange_kind(kind).links else None
    order = ExchangeOrder(rank, HERE, "cpu", case.placement, case.form, max(case.batches), hub=own)
    bell = Doorbell()
    return exchange_kind(kind).join(order, EpochRecord(members, HERE, store, 60.0), bell, bell.ring)


def _tokens(case: Case, batch: int) -> tuple[torch.Tensor, Route]:
    """The same of each turn."""
    generator = torch.Generator().manual_seed(batch)
    ids = torch.stack([torch.randperm(_SLOTS, generator=generator)[: case.top_k] for _ in range(batch)]).int()
    x = torch.randn(batch, case.hidden, generator=generator).to(torch.bfloat16)
    return x, Route(ids, torch.rand(batch, case.top_k, generator=generator))


def _exchange(case: Case, exchange: Exchange, ask: bool, batch: int) -> Turn:
    """One step of so many layers, then as many steps without any."""
    x, route = _tokens(case, batch if ask else 1)
    if not ask:
        x, route = x[:0], Route(route.ids[:0], route.weights[:0])
    y = torch.zeros((batch, case.hidden))
    sums = [y[:rows] for rows in range(batch + 1)]
    exchange.open_step(StepWish(decode=batch if ask else 0))
    took, headers = [], []
    cpu = time.process_time_ns()
    for _ in range(case.layers):
        began = time.perf_counter_ns()
        exchange.layer(0, x, route, lambda _, arrived: sums[arrived.x.shape[0]])
        took.append(time.perf_counter_ns() - began)
    cpu = time.process_time_ns() - cpu
    for _ in range(case.layers):
        began = time.perf_counter_ns()
        exchange.open_step(StepWish(prefill=ask))
        headers.append(time.perf_counter_ns() - began)
    return Turn(took, headers, cpu) if ask else Turn([], [], cpu)


def _bytes(case: Case, batch: int) -> list[tuple[int, int]]:
    """Of each rank with experts: what goes there in a layer, and what comes back."""
    sizes: Sizes = sizes_of(case.form, case.placement, batch)
    ids = _tokens(case, batch)[1].ids.numpy() // case.placement.slots_per_rank
    rows = [int((ids == rank).any(axis=1).sum()) for rank in range(case.experts)]
    return [(HEAD_BYTES + n * sizes.row_bytes, n and HEAD_BYTES + n * case.hidden * sizes.element) for n in rows]


def _floor_ask(case: Case, rank: int, links: list[socket.socket], batch: int) -> Turn:
    sizes = _bytes(case, batch)
    count, buffers = len(links), [ctypes.create_string_buffer(max(pair)) for pair in sizes]
    took = (ctypes.c_int64 * case.layers)()
    cpu = time.process_time_ns()
    failed = _floor().tokenyard_floor_ask(
        count, (ctypes.c_int * count)(*(link.fileno() for link in links)),
        (ctypes.c_void_p * count)(*map(ctypes.addressof, buffers)),
        (ctypes.c_int64 * count)(*(out for out, _ in sizes)), (ctypes.c_int64 * count)(*(back for _, back in sizes)),
        case.layers, took,
    )  # fmt: skip
    assert not failed, "a rank of the floor is gone"
    return Turn(list(took), [], time.process_time_ns() - cpu)


def _floor_answer(case: Case, rank: int, links: list[socket.socket], batch: int) -> Turn:
    come, back = _bytes(case, batch)[rank]
    buffer, cpu = ctypes.create_string_buffer(max(come, back)), time.process_time_ns()
    size = ctypes.c_int64
    failed = _floor().tokenyard_floor_answer(links[0].fileno(), buffer, size(back), size(come), case.layers)
    assert not failed, "the attention rank of the floor is gone"
    return Turn([], [], time.process_time_ns() - cpu)


def _floor() -> Any:
    try:
        return ctypes.CDLL(str(library("portable", (_SOURCE,))))
    except BuildFailed as error:
        raise UserError(str(error), "a C compiler", "--floor") from None


def _listener(secret: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0tokenyard-floor/{secret}")
    listener.listen()
    return listener


def _accepted(listener: socket.socket, count: int) -> list[socket.socket]:
    """By rank."""
    found = [listener.accept()[0] for _ in range(count)]
    return [link for _, link in sorted(((int.from_bytes(link.recv(4)), link) for link in found), key=lambda p: p[0])]


def _connected(secret: str, rank: int) -> socket.socket:
    while True:
        link = socket.socket(socket.AF_UNIX)
        try:
            link.connect(f"\0tokenyard-floor/{secret}")
        except ConnectionRefusedError:  # nobody listens yet
            link.close()
            time.sleep(0.01)
        else:
            link.sendall(rank.to_bytes(4))
            return link
