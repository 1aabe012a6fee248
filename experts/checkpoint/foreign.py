"""What a folder may hold instead of a Hugging Face checkpoint, named with the way out."""

from pathlib import Path
from typing import Any

from experts.errors import UserError

_POINTER = b"version https://git-lfs.github.com/spec/"
_EXPECTED = "a Hugging Face checkpoint (config.json, *.safetensors, a tokenizer)"
_WRAPPERS = ("base_model.model.", "module.", "_orig_mod.")  # of peft, of DistributedDataParallel, of torch.compile


def is_mistrals(path: Path) -> bool:
    """Whether a file has the weights in Mistral's own format, which its folders hold beside Hugging Face's."""
    return path.name.startswith("consolidated")


def refuse_foreign(folder: Path) -> None:
    """Raise UserError for a folder of another format, or for an adapter in place of a model."""
    where = str(folder)
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            "a LoRA adapter (adapter_config.json)", "the whole model: merge the adapter into its base", where
        )
    if (folder / "quantize_config.json").is_file():
        raise UserError("weights quantised by AutoGPTQ (quantize_config.json)", _UNQUANTISED, where)
    if (folder / "hf_quant_config.json").is_file():
        raise UserError("weights quantised by modelopt (hf_quant_config.json)", _UNQUANTISED, where)
    if (folder / "config.json").is_file():
        return
    if any(folder.glob("*.gguf")):
        raise UserError("GGUF files and no config.json", f"the model's own safetensors: {_EXPECTED}", where)
    if (folder / "params.json").is_file():
        raise UserError("Mistral's own format (params.json) and no config.json", _EXPECTED, where)
    raise UserError("no config.json", _EXPECTED, where)


_UNQUANTISED = "float32, float16 or bfloat16 weights (quantised checkpoints are not supported yet)"


def refuse_quantised(config: dict[str, Any], folder: Path) -> None:
    """Raise UserError, naming the method, when config.json declares quantised weights."""
    section = config.get("quantization_config") or config.get("compression_config") or config.get("quantization")
    if section:
        where = str(folder / "config.json")
        raise UserError(f"weights quantised by {_method(section)}", _UNQUANTISED, where)


def _method(section: Any) -> str:
    if not isinstance(section, dict):
        return str(section)
    if section.get("quant_method"):
        return str(section["quant_method"])
    if section.get("load_in_4bit") or section.get("load_in_8bit"):
        return "bitsandbytes"
    if "quant_algo" in section:
        return f"modelopt ({section['quant_algo']})"
    return "MLX" if {"group_size", "bits"} <= section.keys() else "an unnamed method"


def refuse_pointer(path: Path, start: bytes, expected: str) -> None:
    """Raise UserError when a file that begins with `start` is git-lfs's note on a file that was not fetched."""
    if start.startswith(_POINTER[: len(start)]) and len(start) >= 8:
        raise UserError("a git-lfs pointer, not the file", f"{expected} (git lfs pull, or hf download)", str(path))


def refuse_wrapped(names: list[str], folder: Path) -> None:
    """Raise UserError for tensors that were saved with the wrapper of a training program around the model."""
    for prefix in _WRAPPERS:
        found = next((name for name in names if name.startswith(prefix)), None)
        if found is not None:
            raise UserError(
                f"tensor {found}", f"names without {prefix!r}: save the model inside the wrapper", str(folder)
            )
