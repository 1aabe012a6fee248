"""NcclGroup: collectives between CUDA ranks. Importable without CUDA; making one without it is an error."""

import math
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed import Store, Work

from experts.background import only_log, watch_thread
from experts.env import set_for_nccl
from experts.errors import UserError
from experts.exchange.transport import Group, Pending

_TICK = 0.5  # s between two looks at how long a wait has lasted


class NcclGroup(Group):
    """One GPU a member. Operations are ordered on the current stream; waiting blocks until they ended there.

    A member that dies ends nothing by itself: the others' kernels spin. `close`, from any thread, aborts them; so does
    a thread of the group's own once a wait has lasted `timeout` s. torch's own watchdog would end the process.
    """

    def __init__(
        self, store: Store, index: int, size: int, device: str, timeout: float, deadline: float | None = None
    ) -> None:
        """Blocks until all members have come, at most `deadline` s (None: `timeout`)."""
        if not (distributed.is_nccl_available() and torch.cuda.is_available()):
            raise UserError("no NCCL or no CUDA device", "both, or --device cpu", "the exchange of --device cuda")
        self.index, self.size = index, size
        self.device = torch.device(device)
        joining = timeout if deadline is None else deadline
        set_for_nccl(math.ceil(joining))
        self._clock = _Clock(timeout)
        self._lock = threading.Lock()
        backend_class: Any = distributed.ProcessGroupNCCL  # torch's stubs know little of it
        options = backend_class.Options()
        options._timeout = timedelta(seconds=timeout)
        options.config.blocking = 0  # neither joining nor aborting may wait for a peer that died
        backend = backend_class(store, self.index, self.size, options)
        self._backend: Any = backend
        watch_thread("nccl-clock", self._watch, only_log, returns=True)
        try:
            self._connect(backend, joining)
        except BaseException:
            self.close()
            raise

    def all_gather(self, out: torch.Tensor, mine: torch.Tensor) -> Pending:
        return _Operation(self._open()._allgather_base(out, mine), self._clock)

    def all_to_all(
        self, out: torch.Tensor, mine: torch.Tensor, out_splits: Sequence[int], splits: Sequence[int]
    ) -> Pending:
        return _Operation(self._open().alltoall_base(out, mine, list(out_splits), list(splits)), self._clock)

    def close(self) -> None:
        with self._lock:
            backend, self._backend = self._backend, None
        self._clock.stop()
        if backend is not None:
            backend.abort()

    def _connect(self, backend: Any, seconds: float) -> None:
        """Make the communicator now: the first operation would otherwise do it in the middle of a step.

        On a stream of its own: the step thread may be packing for the epoch before on the default one, and would wait
        there for members who first wait for that step.
        """
        with torch.cuda.device(self.device), torch.cuda.stream(torch.cuda.Stream(self.device)):
            mine = torch.zeros(1, dtype=torch.int64, device=self.device)
            out = torch.zeros(self.size, dtype=torch.int64, device=self.device)
            _Operation(backend._allgather_base(out, mine), self._clock).wait(seconds)

    def _watch(self) -> None:
        while not self._clock.ended.wait(_TICK):
            if self._clock.late():
                self.close()

    def _open(self) -> Any:
        backend = self._backend
        if backend is None:
            raise RuntimeError("the group was closed")
        return backend


class _Clock:
    """Since when the group's one waiting thread waits, and until when it may."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.ended = threading.Event()
        self.passed = False  # a wait lasted too long
        self._until: float | None = None

    def begin(self, seconds: float) -> None:
        """A wait of at most so many s begins."""
        self._until = time.monotonic() + seconds

    def end(self) -> None:
        """It is over."""
        self._until = None

    def late(self) -> bool:
        """Whether one has lasted too long; remembered."""
        until = self._until
        self.passed = self.passed or (until is not None and time.monotonic() > until)
        return self.passed

    def stop(self) -> None:
        """Nothing waits any more."""
        self.ended.set()


class _Operation:
    """Waits without Python's lock, in CUDA; what ends it early is an abort, after which nothing that arrived counts."""

    def __init__(self, work: Work, clock: _Clock) -> None:
        self._work, self._clock = work, clock

    def wait(self, seconds: float | None = None) -> bool:
        """seconds: at most, None: the group's own limit."""
        clock = self._clock
        clock.begin(clock.seconds if seconds is None else seconds)
        try:
            self._work.wait()  # the current stream waits; with a timeout the host would look once a millisecond
            event = torch.cuda.Event()
            event.record()
            event.synchronize()
        finally:
            clock.end()
        if clock.passed:
            raise RuntimeError(f"a member has not answered within {clock.seconds if seconds is None else seconds:g} s")
        if clock.ended.is_set():
            raise RuntimeError("the group was closed")
        return True

    def missing(self) -> None:
        return None
