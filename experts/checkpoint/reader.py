"""CheckpointReader: any tensor of a checkpoint by name, one at a time or several at once.

Only what is asked for is read: shards are memory-mapped, so a rank's own memory holds just its destinations.
Knows no model family.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from experts.checkpoint.folder import check_folder, read_json, refuse_quantised, shards
from experts.checkpoint.safetensors_file import Entry, SafetensorsFile
from experts.errors import UserError


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
        files, index = shards(self.folder)
        opened = {path: SafetensorsFile(path) for path in files.values()}
        self._home: dict[str, SafetensorsFile] = {}
        if index is None:
            for file in opened.values():
                self._home.update(dict.fromkeys(file.entries, file))
        else:
            for name, path in index.items():
                if name not in opened[path].entries:
                    raise UserError(f"no tensor {name}", "the tensors that the index places there", str(path))
                self._home[name] = opened[path]

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(self._home)

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds tensor `name`."""
        return name in self._home

    def entry(self, name: str) -> Entry:
        """Shape and stored dtype of a tensor. Raises UserError when there is none of that name."""
        if name not in self._home:
            raise UserError(f"no tensor {name}", "a complete checkpoint of its architecture", str(self.folder))
        return self._home[name].entries[name]

    def view(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The stored tensor, backed by the file; never write to it. Raises UserError on another shape."""
        found = self.entry(name).shape
        if found != shape:
            raise UserError(
                f"tensor {name} of shape {list(found)}", f"{list(shape)} as config.json says", str(self._home[name].path)
            )
        return self._home[name].view(name)

    def read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> torch.Tensor:
        """A copy of its own in `dtype` on `device`."""
        dest = torch.empty(shape, dtype=dtype, device=device)
        dest.copy_(self.view(name, shape))
        return dest

    def read_into(self, name: str, dest: torch.Tensor, index: int | None = None) -> None:
        """Copy into `dest` (its shape is what is expected), converting dtype on the way.

        index: takes row `index` of a stored tensor with one more leading dimension (one expert of a fused one).
        """
        if index is None:
            dest.copy_(self.view(name, tuple(dest.shape)))
            return
        stored = self.entry(name).shape
        rows = stored[0] if stored else 0
        whole = self.view(name, (rows, *dest.shape))
        if index >= rows:
            raise UserError(
                f"tensor {name} with {rows} experts", f"at least {index + 1}", str(self._home[name].path)
            )
        dest.copy_(whole[index])


def read_all(jobs: Iterable[Callable[[], None]], threads: int = 4) -> None:
    """Run reading jobs several at once; the first error is raised after the running ones ended."""
    with ThreadPoolExecutor(threads, thread_name_prefix="checkpoint") as pool:
        for future in [pool.submit(job) for job in jobs]:
            future.result()
