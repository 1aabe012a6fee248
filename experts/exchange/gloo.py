"""GlooGroup: collectives over TCP between CPU ranks, made of gloo's sends and receives.

Gloo's own all-to-all waits for every member even where nothing is to be said, and hands each operation to a thread.
For one attention and two expert ranks on two cores a dispatch and combine take 0.11 ms this way, 0.34 ms that way
(1 KiB, quickest of 60; with a third process on the cores the medians are 0.23 and 2.6).
"""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import ProcessGroupGloo, Store, Work

from experts.exchange.sockets import cut_connections, listening_ports
from experts.exchange.transport import Group, Pending

_backend_class: Any = ProcessGroupGloo  # torch's stubs know little of it
_LOOK_AT_PORTS = threading.Lock()  # held while a device is made, so that its port is not taken for another group's


class GlooGroup(Group):
    """Connects to every member on construction, which waits for them at `store`.

    timeout: s, of every operation
    connect: s, for all to connect once all are there
    """

    def __init__(self, store: Store, index: int, size: int, host: str, timeout: float, connect: float) -> None:
        self.index, self.size = index, size
        self.limit = timedelta(seconds=timeout)
        self.device = torch.device("cpu")
        options = _backend_class._Options()
        device, port = _listen(host)
        options._devices, options._threads, options._timeout = [device], 1, timedelta(seconds=connect)
        store.set(f"port{self.index}", str(port))
        ports = [int(store.get(f"port{i}")) for i in range(self.size)]
        self._ports = dict(enumerate(ports))
        self._lock = threading.Lock()
        self._tag = 0  # of the newest operation: messages of one operation share it
        self._unsettled = 0  # operations begun that have not ended well
        self._backend: Any = _backend_class(store, self.index, self.size, options)

    def all_gather(self, out: torch.Tensor, mine: torch.Tensor) -> Pending:
        count = mine.numel()
        out[self.index * count : (self.index + 1) * count] = mine
        others = [count if member != self.index else 0 for member in range(self.size)]
        return self._exchange(out.split(count), [mine] * self.size, others, others)

    def all_to_all(
        self, out: torch.Tensor, mine: torch.Tensor, out_splits: Sequence[int], splits: Sequence[int]
    ) -> Pending:
        assert not splits[self.index], splits
        return self._exchange(out.split(out_splits), mine.split(splits), out_splits, splits)

    def close(self) -> None:
        """After operations that all went well, dropping the backend is enough, and peers still get what was sent.

        Else connections are cut: a backend's destructor waits for its operations, and an error's traceback may keep
        one alive.
        """
        with self._lock:
            backend, self._backend = self._backend, None
            settled = self._unsettled == 0
        if backend is not None and not settled and self._ports[self.index]:
            cut_connections(self._ports[self.index], {p for i, p in self._ports.items() if i != self.index})

    def _exchange(
        self,
        out: Sequence[torch.Tensor],
        mine: Sequence[torch.Tensor],
        out_counts: Sequence[int],
        counts: Sequence[int],
    ) -> Pending:
        """Receives are posted first: a sender whose peer already waits for it sends at once."""
        backend = self._begin()
        self._tag = (self._tag + 1) % (1 << 30)
        sources = tuple(i for i in range(self.size) if out_counts[i])
        targets = tuple(j for j in range(self.size) if counts[j])
        works = [backend.recv([out[i]], i, self._tag) for i in sources]
        works += [backend.send([mine[j]], j, self._tag) for j in targets]
        return _Operation(self, works, sources + targets)

    def settle(self) -> None:
        """One operation ended well."""
        with self._lock:
            self._unsettled -= 1

    def culprit(self, error: Exception) -> int | None:
        for text in re.findall(r"\]:(\d+)", str(error)):
            port = int(text)
            for index, theirs in self._ports.items():
                if index != self.index and port in (theirs, _swapped(theirs)):
                    return index
        return None

    def _begin(self) -> Any:
        with self._lock:
            if self._backend is None:
                raise RuntimeError("the group was closed")
            self._unsettled += 1
            return self._backend


@dataclass(slots=True)
class _Operation:
    """peers: of each work, whom it receives from or sends to: gloo sends once the other side receives
    done: works that were waited for
    """

    group: GlooGroup
    works: list[Work]
    peers: tuple[int, ...]
    done: int = 0

    def wait(self) -> bool:
        for work in self.works:
            work.wait(self.group.limit)
            self.done += 1
        self.group.settle()
        return True

    def missing(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.peers[self.done :])))


def _listen(host: str) -> tuple[Any, int]:
    """A device bound to `host`, and the port it listens on (0 = not known)."""
    with _LOOK_AT_PORTS:
        before = listening_ports()
        device = _backend_class.create_device(hostname=host)
        new = listening_ports() - before
    return device, new.pop() if len(new) == 1 else 0


def _swapped(port: int) -> int:
    """The port with its bytes swapped, as gloo's messages print it."""
    return int.from_bytes(port.to_bytes(2, "little"), "big")
