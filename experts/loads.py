"""ExpertLoads: how many tokens each slot of a rank has computed, in all and step by step. Knows nothing of who reads it."""

import threading
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from experts.exchange.wire import ExpertBatch, StepHeader

KEPT_STEPS = 4096  # of which nobody asked yet; older ones are forgotten
DECODE, PREFILL, BOTH = 0, 1, 2


@dataclass(frozen=True, slots=True)
class StepLoads:
    """One step of one rank. counts: int32 [A, L, S] tokens per source (member of the group), layer and slot; version:
    of the placement; phase: DECODE, PREFILL or BOTH; seconds: in this rank's experts."""

    step: int
    version: int
    phase: int
    counts: npt.NDArray[np.int32]
    seconds: float


class ExpertLoads:
    """Running totals per MoE layer and slot, and the newest steps. `add` and `end_step` are called by the step thread,
    `snapshot` and `drain` by any. sources: members of the group."""

    def __init__(self, layers: int, slots: int, device: torch.device | str = "cpu", sources: int = 1) -> None:
        self._lock = threading.Lock()
        self._slots, self._sources = slots, sources
        width = slots + 1  # the last column is "none"
        self._totals = torch.zeros(layers, slots, dtype=torch.int64, device=device)
        self._step = torch.zeros(layers, sources * width, dtype=torch.int64, device=device)
        self._ended: deque[tuple[int, int, int, torch.Tensor, float]] = deque(maxlen=KEPT_STEPS)

    def add(self, layer: int, batch: ExpertBatch) -> None:
        """Count the tokens of one layer of the step under way."""
        if batch.slots.numel() == 0 or self._slots == 0:
            return
        width = self._slots + 1
        flat = torch.where(batch.slots < 0, self._slots, batch.slots).long()
        if self._sources > 1:
            flat = flat + width * self._source_of(batch)[:, None]
        self._step[layer].add_(torch.bincount(flat.reshape(-1), minlength=self._sources * width))

    def end_step(self, header: StepHeader, seconds: float) -> None:
        """The step that ran `header` is over; seconds: of compute on this rank."""
        if self._slots == 0:
            return
        prefill = sum(header.prefill)
        phase = DECODE if not prefill else PREFILL if prefill == sum(header.tokens) else BOTH
        step, self._step = self._step, torch.zeros_like(self._step)
        with self._lock:
            self._totals += step.view(len(step), self._sources, -1)[:, :, :-1].sum(dim=1)
            self._ended.append((header.step, header.version, phase, step, seconds))

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
                step, version, phase,
                counts.view(len(counts), self._sources, -1)[:, :, :-1].transpose(0, 1).to("cpu", torch.int32).numpy(),
                seconds,
            )
            for step, version, phase, counts, seconds in ended
        ]  # fmt: skip

    def _source_of(self, batch: ExpertBatch) -> torch.Tensor:
        """[N] the member that each row came from."""
        rows = torch.tensor(batch.rows, device=batch.slots.device)
        return torch.repeat_interleave(torch.arange(len(rows), device=rows.device), rows)
