"""Which files make up a checkpoint folder, checked before anything is read. Knows no tensor's content."""

import json
import re
from pathlib import Path
from typing import Any

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
        raise UserError("a file", "a folder with a Hugging Face checkpoint", where)
    if not (folder / "config.json").is_file():
        raise UserError("no config.json", "a Hugging Face checkpoint (config.json, *.safetensors, a tokenizer)", where)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises UserError when it is none."""
    try:
        size = path.stat().st_size
        if size > _JSON_LIMIT:
            raise UserError(f"{size} bytes", f"JSON of at most {_JSON_LIMIT} bytes", str(path))
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"unreadable JSON ({error})", "a JSON object", str(path)) from None
    if not isinstance(value, dict):
        raise UserError(f"JSON {type(value).__name__}", "a JSON object", str(path))
    return value


def refuse_quantised(config: dict[str, Any], folder: Path) -> None:
    """Raise UserError, naming the method, when config.json declares quantised weights."""
    section = config.get("quantization_config") or config.get("compression_config") or config.get("quantization")
    if section:
        method = section.get("quant_method", "an unnamed method") if isinstance(section, dict) else str(section)
        raise UserError(
            f"weights quantised by {method}",
            "float32, float16 or bfloat16 weights (quantised checkpoints are not supported yet)",
            str(folder / "config.json"),
        )


def shards(folder: Path) -> tuple[list[Path], dict[str, Path] | None]:
    """The checkpoint's files and, where it has an index, the file of each tensor (None without one).

    Raises UserError for a missing shard, a .bin-only checkpoint, or an index that leads out of the folder.
    """
    index = folder / INDEX
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise UserError("no weight_map of names to files", "{tensor name: file name}", str(index))
        if not weight_map:
            raise UserError("an empty weight_map", "the checkpoint's tensors", str(index))
        files = {name: _inside(folder, name, index) for name in sorted(set(weight_map.values()))}
        return list(files.values()), {tensor: files[name] for tensor, name in weight_map.items()}
    single = folder / SINGLE
    found = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not found:
        if any(folder.glob("*.bin")):
            raise UserError(
                "only .bin weights", "*.safetensors (convert the checkpoint: pickles are never read)", str(folder)
            )
        raise UserError("no *.safetensors", "model.safetensors, or shards with an index", str(folder))
    return found, None


def _inside(folder: Path, name: str, index: Path) -> Path:
    """The file that an index names. It may be a link only within the folder or, as in the hub's cache, to its blobs."""
    path = folder / name
    if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"file name {name!r}", "a file inside the checkpoint's folder", str(index))
    if not path.is_file():
        raise UserError(f"missing shard {name}", "every file that the index names", str(index))
    home, target = folder.resolve(), path.resolve()
    if not target.is_relative_to(home) and target.parent != home.parent.parent / "blobs":
        raise UserError(f"shard {name}, a link to {target}", "a file inside the checkpoint's folder", str(index))
    return path
