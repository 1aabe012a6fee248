"""Parts of a recording made into one trace file, with one part in memory at a time."""

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.balance.trace import LoadTrace, with_sources


def merge_parts(files: Sequence[Path], path: Path) -> None:
    """Write the trace of all parts, in their order, to `path`. Raises OSError, and UserError for a part that is none."""
    first = LoadTrace.load(files[0])
    steps, most = 0, 0
    for file in files:
        part = LoadTrace.load(file)
        steps += len(part.loads)
        most = max(most, 0 if part.source_loads is None else part.source_loads.shape[1])
    table = first.loads.shape[1:]
    each = (LoadTrace.load(file) for file in files)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        _write(archive, "loads", (steps, *table), np.int64, (part.loads for part in each))
        sources = (with_sources(LoadTrace.load(file), most) for file in files)
        _write(archive, "source_loads", (steps, most, *table), np.int64, sources)
        phases = (LoadTrace.load(file).phase for file in files)
        _write(archive, "phase", (steps,), np.uint8, (phase for phase in phases if phase is not None))
        _write(archive, "model", (), np.array(first.model).dtype, [np.array(first.model)])
        _write(archive, "top_k", (), np.int64, [np.array(first.top_k)])


def _write(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike, blocks: Iterable[npt.NDArray[Any]]
) -> None:  # fmt: skip
    """One array of the archive, as numpy writes it, from blocks along its first axis."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as out:
        described = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(out, described)
        for block in blocks:
            out.write(np.ascontiguousarray(block, dtype=dtype).tobytes())
