"""Which files make up a checkpoint folder, checked before anything is read. Knows no tensor's content."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experts.checkpoint.foreign import is_mistrals, refuse_foreign, refuse_pointer
from experts.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_JSON_LIMIT = 256 << 20  # bytes; the largest published index (DeepSeek-V3) has 9 MB


def check_folder(folder: Path) -> None:
    """Raise UserError unless `folder` is an existing folder with a config.json."""
    where = str(folder)
    if not folder.exists():
        expected = "a folder with a Hugging Face checkpoint"
        if _HUB_ID.fullmatch(where):
            expected += f" (a hub id? Download it first: hf download {where} --local-dir DIR, and pass DIR)"
        raise UserError("no such folder", expected, where)
    if not folder.is_dir():
        found = "a GGUF file" if folder.suffix == ".gguf" else "a file"
        raise UserError(
            found, "a folder with a Hugging Face checkpoint (config.json, *.safetensors, a tokenizer)", where
        )
    refuse_foreign(folder)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises UserError when it is none."""
    try:
        size = path.stat().st_size
        if size > _JSON_LIMIT:
            raise UserError(f"{size} bytes", f"JSON of at most {_JSON_LIMIT} bytes", str(path))
        raw = path.read_bytes()
        refuse_pointer(path, raw[:64], "a JSON object")
        value = json.loads(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"unreadable JSON ({error})", "a JSON object", str(path)) from None
    if not isinstance(value, dict):
        raise UserError(f"JSON {type(value).__name__}", "a JSON object", str(path))
    return value


@dataclass(frozen=True, slots=True)
class Shards:
    """The files of a checkpoint.

    index: the file of each tensor, None without one
    note: what was passed over
    """

    files: list[Path]
    index: dict[str, Path] | None = None
    note: str = ""


def shards(folder: Path) -> Shards:
    """The checkpoint's files: model.safetensors, else those of the index, else every *.safetensors.

    Raises UserError for a missing shard, a .bin-only checkpoint, or an index that leads out of the folder.
    """
    index, single = folder / INDEX, folder / SINGLE
    if single.is_file():  # before the index, as transformers has it
        return Shards([single], note=f"{SINGLE} is read, {INDEX} is not" if index.is_file() else "")
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise UserError("no weight_map of names to files", "{tensor name: file name}", str(index))
        if not weight_map:
            raise UserError("an empty weight_map", "the checkpoint's tensors", str(index))
        files = {name: _inside(folder, name, index) for name in sorted(set(weight_map.values()))}
        return Shards(list(files.values()), {tensor: files[name] for tensor, name in weight_map.items()})
    every = sorted(folder.glob("*.safetensors"))
    found = [path for path in every if not is_mistrals(path)]
    if found:
        return Shards(found)
    if every:
        raise UserError(f"{every[0].name}, Mistral's own format", f"{SINGLE}, or shards with an index", str(folder))
    if any(folder.glob("*.gguf")):
        raise UserError("GGUF files and no *.safetensors", "the model's own safetensors", str(folder))
    if any(folder.glob("*.bin")):
        raise UserError(
            "only .bin weights", "*.safetensors (convert the checkpoint: pickles are never read)", str(folder)
        )
    raise UserError("no *.safetensors", f"{SINGLE}, or shards with an index", str(folder))


def _inside(folder: Path, name: str, index: Path) -> Path:
    """The file that an index names. The name is a stranger's and stays in the folder; where a link of that name leads
    is the user's own affair."""
    if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"file name {name!r}", "a file inside the checkpoint's folder", str(index))
    if not (folder / name).is_file():
        raise UserError(f"missing shard {name}", "every file that the index names", str(index))
    return folder / name
