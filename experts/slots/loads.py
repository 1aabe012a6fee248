"""ExpertLoads: how many tokens each slot of a rank has computed, in all and step by step. Knows nothing of who reads it."""

import ctypes
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from experts.epoch.agreement import StepHeader
from experts.exchange.wire import ExpertBatch
from experts.kernels.loaded import loaded

KEPT_STEPS = 4096  # of which nobody asked yet; older ones are forgotten
_KEPT_ROWS = 1024
DECODE, PREFILL, BOTH = 0, 1, 2


@dataclass(frozen=True, slots=True)
class StepLoads:
    """One step of one rank.

        counts: int32 [A, L, S] tokens per source (member of the epoch's group), layer and slot
        version: of the placement
        phase: _KEPT_ROWS = 1024
    DECODE, PREFILL or BOTH
        seconds: in this rank's experts
    """

    epoch: int
    step: int
    version: int
    phase: int
    counts: npt.NDArray[np.int32]
    seconds: float


class _Ended(NamedTuple):
    """counts: int64 [L, A*(S+1)], still on the device."""

    header: StepHeader
    phase: int
    counts: torch.Tensor
    seconds: float


class ExpertLoads:
    """Running totals per MoE layer and slot, and the newest steps. `add` and `end_step` are called by the step thread,
    `snapshot` and `drain` by any. sources: members of the group, as many as the first header names."""

    def __init__(self, layers: int, slots: int, device: torch.device | str = "cpu", sources: int = 1) -> None:
        self._lock = threading.Lock()
        self._slots, self._sources = slots, sources
        self._width = slots + 1  # the last column is "none"
        self._totals = torch.zeros(layers, slots, dtype=torch.int64, device=device)
        self._step = torch.zeros(layers, sources * self._width, dtype=torch.int64, device=device)
        kernels = loaded() if self._step.device.type == "cpu" else None
        self._kernel = None if kernels is None else kernels.count_loads
        self._rows: dict[tuple[int, ...], Any] = {}  # of batches, as the kernel takes them
        self._one = torch.ones(1, dtype=torch.int64, device=device)
        self._ended: deque[_Ended] = deque(maxlen=KEPT_STEPS)
        self.on_news: Callable[[], object] = lambda: None  # called by the step thread when `has_news` becomes true

    def add(self, layer: int, batch: ExpertBatch) -> None:
        """Count the tokens of one layer of the step under way."""
        if batch.slots.numel() == 0 or self._slots == 0:
            return
        self._meet(max(len(batch.rows), 1))
        if self._kernel is not None and batch.slots.is_contiguous():
            self._count(self._kernel, layer, batch)
            return
        flat = torch.where(batch.slots < 0, self._slots, batch.slots).long()
        if self._sources > 1:
            flat = flat + self._width * self._source_of(batch)[:, None]
        flat = flat.reshape(-1)
        self._step[layer].scatter_add_(0, flat, self._one.expand(len(flat)))  # bincount has the host wait for a device

    def _count(self, kernel: Any, layer: int, batch: ExpertBatch) -> None:
        """`add` by the C kernel, which takes 2 us where torch's calls take 50, and 150 after a wait for other ranks."""
        rows = batch.rows or (batch.slots.shape[0],)
        known = self._rows.get(rows)
        if known is None:
            if len(self._rows) >= _KEPT_ROWS:
                self._rows.clear()
            known = self._rows[rows] = (ctypes.c_int32 * len(rows))(*rows)
        step, slots = self._step, batch.slots
        at = step.data_ptr() + layer * step.stride(0) * step.itemsize
        kernel(slots.data_ptr(), known, len(rows), slots.shape[1], self._width, at)

    def end_step(self, header: StepHeader, seconds: float) -> None:
        """The step that ran `header` is over; seconds: of compute on this rank."""
        if self._slots == 0:
            return
        prefill = sum(header.prefill)
        phase = DECODE if not prefill else PREFILL if prefill == sum(header.tokens) else BOTH
        self._meet(len(header.tokens))
        step, self._step = self._step, torch.zeros_like(self._step)
        with self._lock:
            self._totals += step.view(len(step), -1, self._width)[:, :, :-1].sum(dim=1)
            first = not self._ended
            self._ended.append(_Ended(header, phase, step, seconds))
        if first:
            self.on_news()

    def abandon_step(self) -> None:
        """The step under way broke, and is run again: nothing of it was."""
        self._step.zero_()

    @property
    def has_news(self) -> bool:
        """Whether a step ended since the last `drain`."""
        return bool(self._ended)

    def snapshot(self) -> torch.Tensor:
        """[L, S] int64 totals of ended steps since the start, a copy on the CPU."""
        with self._lock:
            return self._totals.to("cpu", copy=True)

    def drain(self) -> list[StepLoads]:
        """The steps that ended since the last call, oldest first."""
        with self._lock:
            ended = list(self._ended)
            self._ended.clear()
        return [
            StepLoads(
                header.epoch, header.step, header.version, phase,
                counts.view(len(counts), -1, self._width)[:, :, :-1].transpose(0, 1).to("cpu", torch.int32).numpy(),
                seconds,
            )
            for header, phase, counts, seconds in ended
        ]  # fmt: skip

    def _meet(self, sources: int) -> None:
        """The group has another number of members from this step on, of which nothing is counted yet."""
        if sources != self._sources:
            self._sources = sources
            self._step = self._step.new_zeros(len(self._step), sources * self._width)

    def _source_of(self, batch: ExpertBatch) -> torch.Tensor:
        """[N] the member that each row came from."""
        rows = torch.tensor(batch.rows, device=batch.slots.device)
        return torch.repeat_interleave(torch.arange(len(rows), device=rows.device), rows, output_size=sum(batch.rows))
