"""Recording of loads (`serve --record-loads`): parts while it serves, one file at a clean end. Bounded in memory."""

import asyncio
import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from cluster.balance.loads import StepRow
from cluster.balance.trace import LoadTrace, parts_of
from cluster.balance.trace_parts import merge_parts
from experts.background import watch_task
from experts.errors import UserError

log = logging.getLogger(__name__)
PART_BYTES = 64 << 20
MOST_BYTES = 512 << 20


class LoadRecorder:
    """Takes steps, writes parts, makes one file of them. `flush` and `finish` block; all is for any thread."""

    def __init__(
        self, path: Path, model: str, top_k: int, part_bytes: int = PART_BYTES, most_bytes: int = MOST_BYTES
    ) -> None:  # fmt: skip
        """path: of the file in the end; its parts lie beside it, see `parts_of`
        part_bytes: of steps in memory, after which a part is written before its time
        most_bytes: of steps in memory while parts can't be written, more are lost
        """
        self.path, self._model, self._top_k = path, model, top_k
        self._part_bytes, self._most_bytes = part_bytes, most_bytes
        self.parts = parts_of(path)
        self.lost = 0  # steps that found no room
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._rows: list[StepRow] = []
        self._bytes = 0
        self._files: list[Path] = []
        self._steps = 0  # in parts
        self._failing = self._done = False

    def add(self, row: StepRow) -> bool:
        """Keep a step; whether a part should be written now."""
        with self._lock:
            size = row.source_loads.size * 4
            if self._bytes + size > self._most_bytes:
                self.lost += 1
                return False
            self._bytes += size
            self._rows.append(replace(row, source_loads=row.source_loads.astype(np.int32)))
            return self._bytes > self._part_bytes and not self._failing

    def flush(self) -> None:
        """Write what is in memory as a part. Raises OSError; nothing is lost then."""
        with self._writing:
            with self._lock:
                rows, self._failing = list(self._rows), True
            for same in _runs(rows):
                self._write(same)
            self._failing = False

    def finish(self) -> str:
        """Put the file in its place and remove the parts; a note for people where there was nothing to write.

        Raises OSError.
        """
        if self._done:
            return ""
        self.flush()
        if not self._files:
            return f"{self.path}: no step had tokens, nothing is written"
        whole = self.path.with_name(self.path.name + ".part")
        try:
            merge_parts(self._files, whole)
            os.replace(whole, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                whole.unlink(missing_ok=True)
            raise
        self._done = True
        shutil.rmtree(self.parts)
        return ""

    @property
    def kept(self) -> str:
        """What a failed `finish` left, for people."""
        return f"{self._steps} steps are in {self.parts}" if self._files and self.parts.is_dir() else "nothing is left"

    def _write(self, rows: list[StepRow]) -> None:
        """One part, of steps with as many sources each."""
        if not self._files:
            self.parts.mkdir()
        sources = np.stack([row.source_loads for row in rows]).astype(np.int64)
        phase = np.array([row.phase for row in rows], dtype=np.uint8)
        file = self.parts / f"{len(self._files):04d}.npz"
        part = file.with_suffix(".part")
        try:
            LoadTrace(sources.sum(axis=1), sources, phase, self._model, self._top_k).save(part)
            os.replace(part, file)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
                if not self._files:
                    self.parts.rmdir()
            raise
        self._files.append(file)
        self._steps += len(rows)
        with self._lock:
            del self._rows[: len(rows)]
            self._bytes -= sum(row.source_loads.size * 4 for row in rows)


@dataclass(frozen=True, slots=True)
class RecordingEnd:
    """How a recording ended.

    text: a line for people, empty when all is in its file
    lost: whether something is missing
    """

    text: str = ""
    lost: bool = False


class Recording:
    """A recording beside a running server; lives in its event loop. note: takes events, as kind and text."""

    def __init__(self, recorder: LoadRecorder, interval: float, note: Callable[[str, str], None]) -> None:
        """interval: s between parts."""
        self._recorder, self._interval, self._note = recorder, interval, note
        self._full = asyncio.Event()
        self._task = watch_task("recording", self._run(), partial(self._note, "recording"))

    def add(self, row: StepRow) -> None:
        """Keep a step."""
        recorder = self._recorder
        if recorder.lost:  # what follows a gap is of no use
            recorder.lost += 1
        elif recorder.add(row):
            self._full.set()
        elif recorder.lost:
            self._tell(f"recording {recorder.path} ends: there is no more room for steps that can't be written")

    async def end(self) -> RecordingEnd:
        """No more steps; the file is put in its place. Call again to try again what failed."""
        self._task.cancel()
        recorder = self._recorder
        try:
            text = await asyncio.to_thread(recorder.finish)
        except OSError as error:
            text = f"{recorder.path}: the recorded loads can't be written ({_reason(error)}); {recorder.kept}"
            self._tell(text)
            return RecordingEnd(text, True)
        if recorder.lost:
            text = f"{recorder.path}: the newest {recorder.lost} steps are missing, as parts could not be written"
        return RecordingEnd(text, recorder.lost > 0)

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), self._interval)
            self._full.clear()
            try:
                await asyncio.to_thread(self._recorder.flush)
            except OSError as error:
                self._tell(
                    f"a part of {self._recorder.path} can't be written ({_reason(error)}); its steps stay in memory and it is "
                    f"tried again in {self._interval:g} s"
                )

    def _tell(self, text: str) -> None:
        log.warning("%s", text)
        self._note("recording", text)


def check_writable(path: Path) -> None:
    """Raise UserError unless a recording can be put there."""
    where, parts = "--record-loads", parts_of(path)
    if not path.parent.is_dir():
        raise UserError(f"no folder {path.parent}", "a folder that exists", where)
    if path.is_dir():
        raise UserError(f"{path}, a folder", "a file name", where)
    try:
        parts.mkdir()
        parts.rmdir()
    except FileExistsError:
        raise UserError(
            f"{parts}, the parts of an earlier run",
            f"none: read them (`tokenyard simulate {parts}`) or move them away",
            where,
        ) from None
    except OSError as error:
        raise UserError(
            f"{path}, which can't be written ({_reason(error)})", "a file in a writable folder", where
        ) from None


def _runs(rows: list[StepRow]) -> list[list[StepRow]]:
    """Steps that follow each other and have as many sources."""
    out: list[list[StepRow]] = []
    for row in rows:
        if out and out[-1][0].source_loads.shape == row.source_loads.shape:
            out[-1].append(row)
        else:
            out.append([row])
    return out


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
