"""GlooGroup: collectives over TCP between CPU ranks."""

import re
import threading
from collections.abc import Sequence
from datetime import timedelta

import torch
from torch.distributed import ProcessGroupGloo, Store

from experts.exchange.transport import Group, Pending
from experts.exchange.sockets import cut_connections, listening_ports
from experts.membership import Membership

_LOOK_AT_PORTS = threading.Lock()  # held while a device is made, so that its port is told from another group's


class GlooGroup(Group):
    """Connects to every member on construction, which waits for them at `store`."""

    def __init__(self, store: Store, membership: Membership, rank: int, timeout: float) -> None:
        self.index, self.size = membership.index(rank), membership.size
        self.device = torch.device("cpu")
        options = ProcessGroupGloo._Options()
        device, port = _listen(membership.members[self.index].node_ip)
        options._devices, options._threads, options._timeout = [device], 1, timedelta(seconds=timeout)
        store.set(f"port{self.index}", str(port))
        ports = [int(store.get(f"port{i}")) for i in range(self.size)]
        self._ports = dict(enumerate(ports))
        self._lock = threading.Lock()
        self._backend: ProcessGroupGloo | None = ProcessGroupGloo(store, self.index, self.size, options)

    def all_gather(self, out: torch.Tensor, mine: torch.Tensor) -> Pending:
        return self._open()._allgather_base(out, mine)

    def all_to_all(
        self, out: torch.Tensor, mine: torch.Tensor, out_splits: Sequence[int], splits: Sequence[int]
    ) -> Pending:
        return self._open().alltoall_base(out, mine, out_splits, splits)

    def close(self) -> None:
        with self._lock:
            backend, self._backend = self._backend, None
        if backend is not None and self._ports[self.index]:
            cut_connections(self._ports[self.index], {p for i, p in self._ports.items() if i != self.index})

    def culprit(self, error: Exception) -> int | None:
        for text in re.findall(r"\]:(\d+)", str(error)):
            port = int(text)
            for index, theirs in self._ports.items():
                if index != self.index and port in (theirs, _swapped(theirs)):
                    return index
        return None

    def _open(self) -> ProcessGroupGloo:
        backend = self._backend
        if backend is None:
            raise RuntimeError("the group was closed")
        return backend


def _listen(host: str) -> tuple[ProcessGroupGloo.Device, int]:
    """A device bound to `host`, and the port it listens on (0 = could not be told)."""
    with _LOOK_AT_PORTS:
        before = listening_ports()
        device = ProcessGroupGloo.create_device(hostname=host)
        new = listening_ports() - before
    return device, new.pop() if len(new) == 1 else 0


def _swapped(port: int) -> int:
    """The port with its bytes swapped, as gloo's messages print it."""
    return int.from_bytes(port.to_bytes(2, "little"), "big")
