"""NcclGroup: collectives between CUDA ranks. Importable without CUDA; making one without it is an error."""

import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed import Store, Work

from experts.errors import UserError
from experts.exchange.transport import Group, Pending


class NcclGroup(Group):
    """One GPU a member. Operations are ordered on the current stream; waiting blocks until they ended there.

    Communicators are non-blocking, so that neither joining nor aborting hangs on a peer that died.
    """

    def __init__(self, store: Store, index: int, size: int, device: str, timeout: float) -> None:
        if not (distributed.is_nccl_available() and torch.cuda.is_available()):
            raise UserError("no NCCL or no CUDA device", "both, or --device cpu", "the exchange of --device cuda")
        self.index, self.size = index, size
        self.device = torch.device(device)
        self._timeout = timedelta(seconds=timeout)
        self._lock = threading.Lock()
        backend_class: Any = distributed.ProcessGroupNCCL  # torch's stubs know little of it
        options = backend_class.Options()
        options._timeout = self._timeout
        if hasattr(options, "config"):
            options.config.blocking = 0
        backend = backend_class(store, self.index, self.size, options)
        self._backend: Any = backend
        self._connect(backend)

    def all_gather(self, out: torch.Tensor, mine: torch.Tensor) -> Pending:
        return self._bounded(self._open()._allgather_base(out, mine))

    def all_to_all(
        self, out: torch.Tensor, mine: torch.Tensor, out_splits: Sequence[int], splits: Sequence[int]
    ) -> Pending:
        return self._bounded(self._open().alltoall_base(out, mine, list(out_splits), list(splits)))

    def close(self) -> None:
        with self._lock:
            backend, self._backend = self._backend, None
        if backend is not None:
            backend.abort()

    def _connect(self, backend: Any) -> None:
        """Make the communicator now: the first operation would otherwise do it in the middle of a step."""
        with torch.cuda.device(self.device):
            mine = torch.zeros(1, dtype=torch.int64, device=self.device)
            out = torch.zeros(self.size, dtype=torch.int64, device=self.device)
            self._bounded(backend._allgather_base(out, mine)).wait()

    def _bounded(self, work: Work) -> Pending:
        return _BoundedWork(work, self._timeout)

    def _open(self) -> Any:
        backend = self._backend
        if backend is None:
            raise RuntimeError("the group was closed")
        return backend


class _BoundedWork:
    """Waits on the host with a timeout, so that a dead peer ends in an error and not in a kernel that spins."""

    def __init__(self, work: Work, timeout: timedelta) -> None:
        self._work = work
        self._timeout = timeout

    def wait(self) -> bool:
        return self._work.wait(self._timeout)

    def missing(self) -> None:
        return None
