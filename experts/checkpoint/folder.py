"""Which files make up a checkpoint folder, checked before anything is read. Knows no tensor's content."""

import json
import re
from pathlib import Path
from typing import Any

from experts.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_INDEX_LIMIT = 256 << 20  # bytes; the largest published index (DeepSeek-V3) is 9 MB


def check_folder(folder: Path) -> None:
    """Raise UserError unless `folder` is an existing folder with a config.json."""
    where = str(folder)
    if not folder.exists():
        if _HUB_ID.fullmatch(where) and not where.startswith("."):
            raise UserError(
                "a hub id",
                "a folder: download the checkpoint first (for instance `hf download "
                f"{where} --local-dir DIR`) and pass DIR",
                where,
            )
        raise UserError("no such folder", "a folder with a Hugging Face checkpoint", where)
    if not folder.is_dir():
        raise UserError("a file", "a folder with a Hugging Face checkpoint", where)
    if not (folder / "config.json").is_file():
        raise UserError("no config.json", "a Hugging Face checkpoint (config.json, *.safetensors, a tokenizer)", where)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises UserError when it is none."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"unreadable JSON ({error})", "a JSON object", str(path)) from None
    if not isinstance(value, dict):
        raise UserError(f"JSON {type(value).__name__}", "a JSON object", str(path))
    return value


def refuse_quantised(config: dict[str, Any], folder: Path) -> None:
    """Raise UserError, naming the method, when config.json declares quantised weights."""
    section = config.get("quantization_config") or config.get("quantization")
    if section:
        method = section.get("quant_method", "unnamed method") if isinstance(section, dict) else str(section)
        raise UserError(
            f"weights quantised by {method}", "float32, float16 or bfloat16 weights (no quantised format is supported yet)",
            str(folder / "config.json"),
        )


def shards(folder: Path) -> tuple[dict[str, Path], dict[str, Path] | None]:
    """Files of a checkpoint: ({file name: path}, {tensor name: path} from the index, None without one).

    Raises UserError for a missing shard, a .bin-only checkpoint, or an index that leads out of the folder.
    """
    index = folder / INDEX
    if index.is_file():
        if index.stat().st_size > _INDEX_LIMIT:
            raise UserError(f"{index.stat().st_size} bytes", f"an index of at most {_INDEX_LIMIT} bytes", str(index))
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise UserError("no weight_map of names to files", "{tensor name: file name}", str(index))
        files = {name: _inside(folder, name, index) for name in sorted(set(weight_map.values()))}
        return files, {tensor: files[name] for tensor, name in weight_map.items()}
    single = folder / SINGLE
    found = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not found:
        if any(folder.glob("*.bin")):
            raise UserError(
                "only .bin weights", "*.safetensors (convert the checkpoint: pickles are never read)", str(folder)
            )
        raise UserError("no *.safetensors", "model.safetensors or shards with an index", str(folder))
    return {path.name: path for path in found}, None


def _inside(folder: Path, name: str, index: Path) -> Path:
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"file name {name!r}", "a file inside the checkpoint's folder", str(index))
    if not path.is_file():
        raise UserError(f"missing shard {name}", "every file that the index names", str(index))
    return path
