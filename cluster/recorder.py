"""LoadRecorder: steps kept for a trace file (`serve --record-loads`). Bounded in memory; written whole or not at all."""

import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from cluster.balance.loads import StepRow
from cluster.balance.trace import LoadTrace
from experts.errors import UserError

log = logging.getLogger(__name__)
_MOST_BYTES = 1 << 30


class LoadRecorder:
    """Takes steps, gives a file."""

    def __init__(self, path: Path, model: str, top_k: int) -> None:
        self.path, self._model, self._top_k = path, model, top_k
        self._rows: list[StepRow] = []
        self._bytes = 0
        self.full = False

    def add(self, row: StepRow) -> None:
        """Keep a step, while there is room."""
        if self.full:
            return
        self._bytes += row.source_loads.size * 4
        if self._bytes > _MOST_BYTES:
            self.full = True
            log.warning("%s: %d steps recorded, which is all that fits; recording ends", self.path, len(self._rows))
            return
        self._rows.append(replace(row, source_loads=row.source_loads.astype(np.int32)))

    def save(self) -> None:
        """Write the trace beside its place, then put it there."""
        if not self._rows:
            log.warning("%s: no step had tokens, nothing is written", self.path)
            return
        sources = np.stack([row.source_loads for row in self._rows]).astype(np.int64)
        phase = np.array([row.phase for row in self._rows], dtype=np.uint8)
        part = self.path.with_name(self.path.name + ".part")
        LoadTrace(sources.sum(axis=1), sources, phase, self._model, self._top_k).save(part)
        os.replace(part, self.path)


def check_writable(path: Path) -> None:
    """Raise UserError unless a file can be put there."""
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UserError(f"no folder {folder}", "a folder that exists", "--record-loads")
    if path.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{path}, which can't be written", "a file name in a writable folder", "--record-loads")
