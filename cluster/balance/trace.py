"""LoadTrace: tokens routed to each expert, step by step, and its npz file."""

import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from experts.errors import UserError

log = logging.getLogger(__name__)
IntArray = npt.NDArray[np.int64]
DECODE, PREFILL, BOTH = 0, 1, 2


@dataclass(frozen=True, slots=True, eq=False)
class LoadTrace:
    """loads: int64 [T, L, E]
    source_loads: int64 [T, A, L, E] per attention rank
    phase: uint8 [T], see above
    """

    loads: IntArray
    source_loads: IntArray | None = None
    phase: npt.NDArray[np.uint8] | None = None
    model: str = ""
    top_k: int = 0

    def save(self, path: Path) -> None:
        """Write the npz file of the contract."""
        arrays: dict[str, Any] = {"loads": self.loads, "model": np.array(self.model), "top_k": np.int64(self.top_k)}
        if self.source_loads is not None:
            arrays["source_loads"] = self.source_loads
        if self.phase is not None:
            arrays["phase"] = self.phase
        with open(path, "wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> "LoadTrace":
        """Read and check such a file, or the parts of a recording that did not come to its end: their folder, or the name
        that the file would have. Raises UserError for what is none."""
        if path.is_dir():
            return _joined(path)
        parts = parts_of(path)
        if parts.is_dir():
            if path.exists():
                raise UserError(
                    f"{path} and {parts}, of two recordings", "one of them: name the folder, or move it away", "loads"
                )
            log.warning("%s was never written; its parts are read", path)
            return _joined(parts)
        where = f"loads file {path}"
        arrays = _read(path, where)
        if "loads" not in arrays:
            raise UserError(f"keys {sorted(arrays)}", "the key loads", where)
        loads = _counts(arrays["loads"], 3, "loads", "[steps, layers, experts]", where)
        sources = phase = None
        if "source_loads" in arrays:
            form = "[steps, sources, layers, experts]"
            sources = _counts(arrays["source_loads"], 4, "source_loads", form, where)
            if (sources.shape[0], *sources.shape[2:]) != loads.shape:
                raise UserError(f"source_loads of shape {list(sources.shape)}", f"loads' {list(loads.shape)}", where)
        if "phase" in arrays:
            phase = arrays["phase"]
            if phase.dtype != np.uint8 or phase.shape != loads.shape[:1] or phase.max(initial=0) > BOTH:
                raise UserError(
                    f"phase of {phase.dtype} {list(phase.shape)}", f"uint8 [{len(loads)}] of 0, 1 or 2", where
                )  # fmt: skip
        model = str(arrays["model"]) if "model" in arrays else ""
        return cls(loads, sources, phase, model, int(arrays["top_k"]) if "top_k" in arrays else 0)

    def check_model(self, layers: int, experts: int, where: str) -> None:
        """Raise UserError unless the trace is one of a model with so many MoE layers and experts."""
        if self.loads.shape[1:] != (layers, experts):
            found = f"a trace of {self.loads.shape[1]} layers x {self.loads.shape[2]} experts"
            raise UserError(found + (f" ({self.model})" if self.model else ""), f"{layers} x {experts}", where)


def parts_of(path: Path) -> Path:
    """The folder of a recording's parts, NNNN.npz each, until it is written whole: F.parts for F.npz."""
    return path.with_suffix(".parts") if path.suffix == ".npz" else path.with_name(path.name + ".parts")


def with_sources(trace: LoadTrace, sources: int) -> IntArray:
    """source_loads with so many sources: those that a trace lacks brought no tokens."""
    if trace.source_loads is None:
        raise UserError("a part without source_loads", "parts of one recording", "loads")
    lacking = sources - trace.source_loads.shape[1]
    return np.pad(trace.source_loads, ((0, 0), (0, lacking), (0, 0), (0, 0)))


def _joined(folder: Path) -> LoadTrace:
    """The trace of all parts in a folder."""
    files = sorted(folder.glob("*.npz"), key=lambda file: (len(file.name), file.name))
    where = f"loads folder {folder}"
    expected = [f"{n:04d}.npz" for n in range(max(len(files), 1))]
    if [file.name for file in files] != expected:
        found = ", ".join(file.name for file in files[:3]) + (", …" if len(files) > 3 else "")
        raise UserError(f"files {found}" if files else "no part", f"{expected[0]} to {expected[-1]}", where)
    parts = [LoadTrace.load(file) for file in files]
    first = parts[0]
    for file, part in zip(files, parts, strict=True):
        part.check_model(first.loads.shape[1], first.loads.shape[2], f"loads file {file}")
    sources = None
    if first.source_loads is not None:
        most = max(part.source_loads.shape[1] for part in parts if part.source_loads is not None)
        sources = np.concatenate([with_sources(part, most) for part in parts])
    phases = [part.phase for part in parts if part.phase is not None]
    return LoadTrace(
        np.concatenate([part.loads for part in parts]), sources,
        np.concatenate(phases) if len(phases) == len(parts) else None, first.model, first.top_k,
    )  # fmt: skip


def _read(path: Path, where: str) -> dict[str, npt.NDArray[Any]]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise UserError("a single array", "an npz archive with the key loads", where)
        with loaded as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UserError("no such file", "an npz file with the key loads", where) from None
    except MemoryError:
        raise UserError("arrays larger than this machine's memory", "a trace that fits", where) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"an unreadable file ({error})", "an npz file with the key loads", where) from None


def _counts(array: npt.NDArray[Any], dims: int, name: str, form: str, where: str) -> IntArray:
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise UserError(f"NaN in {name}", "whole numbers of tokens (int64)", where)
    if array.dtype != np.int64:
        raise UserError(f"{name} of dtype {array.dtype}", "int64", where)
    if array.ndim != dims or 0 in array.shape:
        raise UserError(f"{name} of shape {list(array.shape)}", form, where)
    if array.min() < 0:
        at = tuple(int(i) for i in np.argwhere(array < 0)[0])
        raise UserError(f"{array[at]} tokens at {list(at)} of {name}", "counts of 0 or more", where)
    return array
