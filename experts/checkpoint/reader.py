"""CheckpointReader: any tensor of a checkpoint by name, one at a time or several at once.

Only what is asked for is read: shards are memory-mapped, so a rank's own memory holds just its destinations.
Knows no model family.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from experts.checkpoint.folder import check_folder, read_json, shards
from experts.checkpoint.foreign import refuse_quantised, refuse_wrapped
from experts.checkpoint.names import spellings
from experts.checkpoint.safetensors_file import Entry, SafetensorsFile
from experts.errors import UserError

Job = tuple[str, torch.Tensor, int | None]  # name, destination, row of a fused tensor: see `read_into`


class CheckpointReader:
    """A Hugging Face folder with single or sharded safetensors. Thread-safe after construction.

    Construction opens every shard and checks its header against the file's size, and reads no weights.
    Raises UserError for everything that is wrong with the folder.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        check_folder(self.folder)
        self.config: dict[str, Any] = read_json(self.folder / "config.json")
        refuse_quantised(self.config, self.folder)
        found = shards(self.folder)
        self.note = found.note  # what of the folder is passed over, empty = nothing
        opened = {path: SafetensorsFile(path) for path in found.files}
        self._home: dict[str, SafetensorsFile] = {}
        if found.index is None:
            for file in opened.values():
                twice = self._home.keys() & file.entries.keys()
                if twice:
                    raise UserError(
                        f"tensor {min(twice)} in two files", "one, or an index that chooses", str(file.path)
                    )
                self._home.update(dict.fromkeys(file.entries, file))
        else:  # an entry whose tensor is not there may be one that nobody needs
            self._home = {n: opened[path] for n, path in found.index.items() if n in opened[path].entries}
        self._index = found.index or {}
        refuse_wrapped(self.names(), self.folder)

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(self._home)

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds tensor `name`, under one of its spellings."""
        return any(one in self._home for one in spellings(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a stored tensor. Raises UserError when there is none of that name."""
        return self._place(name)[1].shape

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a stored tensor. Raises UserError when there is none of that name, or of a dtype that is not read."""
        file, _, stored = self._place(name)
        return file.dtype(stored)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> torch.Tensor:
        """A copy of its own in `dtype` on `device`. Raises UserError when it is missing or has another shape."""
        self._check_shape(name, shape)
        dest = torch.empty(shape, dtype=dtype, device=device)
        self.read_into(name, dest)
        return dest

    def expert_slice(
        self, name: str, expert: int, shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu"
    ) -> torch.Tensor:
        """Row `expert`, of `shape`, of a fused tensor [E, *shape]: a copy of its own; reads nothing else of it."""
        dest = torch.empty(shape, dtype=dtype, device=device)
        self.read_into(name, dest, expert)
        return dest

    def read_into(self, name: str, dest: torch.Tensor, index: int | None = None) -> None:
        """Copy into `dest` (its shape is what is expected), converting dtype on the way, with no buffer between.

        index: takes row `index` of a stored tensor with one more leading dimension (one expert of a fused one).
        Raises UserError when the tensor is missing, of another shape or of a dtype that is not read.
        """
        self.check(name, tuple(dest.shape), index)
        file, entry, stored = self._place(name)
        if index is None:
            file.read_ahead(entry.offset, entry.nbytes)
            dest.copy_(file.view(stored))
            return
        row_bytes = entry.nbytes // entry.shape[0]
        file.read_ahead(entry.offset + index * row_bytes, row_bytes)
        dest.copy_(file.view(stored)[index])

    def check(self, name: str, shape: tuple[int, ...], index: int | None = None) -> None:
        """Raise UserError unless `read_into` would fill a destination of `shape`; reads headers only."""
        file, entry, stored = self._place(name)
        file.dtype(stored)
        if index is None:
            self._check_shape(name, shape)
            return
        found = entry.shape
        rows = found[0] if found else 0
        self._check_shape(name, (rows, *shape))
        if not 0 <= index < rows:
            raise UserError(f"tensor {name} with {rows} experts", f"one with expert {index}", str(file.path))

    def read_many(self, jobs: Iterable[Job], progress: Callable[[int], None] | None = None, threads: int = 4) -> None:
        """`read_into` for each job, several at once. progress: called from their threads, one at a time, with the
        bytes of each copy.

        The first error ends the rest and is raised once nothing writes to a destination any more.
        """

        lock = threading.Lock()

        def run(job: Job) -> None:
            name, dest, index = job
            self.read_into(name, dest, index)
            if progress is not None:
                with lock:
                    progress(dest.nbytes)

        with ThreadPoolExecutor(threads, thread_name_prefix="checkpoint") as pool:
            futures = [pool.submit(run, job) for job in jobs]
            wait(futures, return_when=FIRST_EXCEPTION)
            failed = next((f for f in futures if f.done() and f.exception() is not None), None)
            if failed is not None:
                pool.shutdown(wait=True, cancel_futures=True)
                failed.result()

    def _place(self, name: str) -> tuple[SafetensorsFile, Entry, str]:
        """(file, entry, stored name) of a tensor under one of its spellings."""
        for stored in spellings(name):
            file = self._home.get(stored)
            if file is not None:
                return file, file.entries[stored], stored
        if name in self._index:
            raise UserError(f"no tensor {name}", "the tensors that the index places there", str(self._index[name]))
        first = next(iter(self._home), "none")
        raise UserError(
            f"no tensor {name} (the first is {first})", "a complete checkpoint of its architecture", str(self.folder)
        )

    def _check_shape(self, name: str, expected: tuple[int, ...]) -> None:
        file, entry, _ = self._place(name)
        if entry.shape != expected:
            raise UserError(
                f"tensor {name} of shape {list(entry.shape)}", f"{list(expected)} as config.json says", str(file.path)
            )
