"""Typed access to config.json in both dialects. A missing or wrong value is an error that names key and file."""

from pathlib import Path
from typing import Any, TypeVar

import torch

from experts.errors import UserError

T = TypeVar("T")

# First name: what the families ask for; the others mean the same in some saves.
ALIASES = {
    "num_experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "num_experts_per_tok": ("num_experts_per_tok", "moe_topk"),
    "head_dim": ("head_dim", "attention_head_dim"),
    "dtype": ("dtype", "torch_dtype"),
}
_LARGEST = 2**31
_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


class Config:
    """One config.json. Keys with a null value count as absent."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self._values = values
        self.where = where
        self._asked: set[str] = set()

    @classmethod
    def of(cls, values: dict[str, Any], folder: Path) -> "Config":
        """The config of a checkpoint folder."""
        return cls(values, str(folder / "config.json"))

    def raw(self, key: str) -> Any:
        """The value under `key` or one of its aliases, None when absent."""
        self._asked.update(ALIASES.get(key, (key,)))
        return self._values.get(self._spelled(key))

    def _one(self, key: str) -> Any:
        """The value, of a list of equal ones (one a layer) the first, of a whole number written as a float that number."""
        value = self.raw(key)
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    def unread(self) -> list[str]:
        """Names that have a value which nobody asked for, sorted."""
        return sorted(self.keys() - self._asked)

    def absent(self, key: str) -> bool:
        """Whether the key is not there at all, not even with null."""
        return not any(name in self._values for name in ALIASES.get(key, (key,)))

    def keys(self) -> set[str]:
        """Names that have a value."""
        return {name for name, value in self._values.items() if value is not None}

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number, be it written as 8, 8.0 or a list of equal ones."""
        value = self._one(key)
        if value is None and default is not None:
            return default
        if type(value) is not int:
            raise self.wrong(key, value, "a whole number, the same for all layers")
        return value

    def positive(self, key: str, default: int | None = None, most: int = _LARGEST) -> int:
        """A whole number from 1 to `most`."""
        value = self.integer(key, default)
        if not 1 <= value <= most:
            raise self.wrong(key, value, f"a whole number from 1 to {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number; neither NaN nor infinite."""
        value = self._one(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
            raise self.wrong(key, value, f"a number of at most {_LARGEST} either way")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._one(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def section(self, key: str) -> "Config | None":
        """A nested object, None when absent."""
        value = self.raw(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, value, "an object")
        return Config(value, f"{self.where} {key}")

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers, or one alone; empty when absent."""
        value = self.raw(key)
        if value is None:
            return ()
        items = (
            [int(v) if isinstance(v, float) and v.is_integer() else v for v in value]
            if isinstance(value, list)
            else [value]
        )
        if not all(type(item) is int for item in items):
            raise self.wrong(key, value, "a whole number or a list of them")
        return tuple(items)

    def by_layer(self, key: str, layers: int) -> tuple[int, ...]:
        """A whole number for each layer, from a list of so many or one number for all."""
        value = self.raw(key)
        if not isinstance(value, list) or len(set(map(str, value))) == 1:
            return (self.positive(key),) * layers
        numbers = self.integers(key)
        if len(numbers) != layers or min(numbers) < 1:
            raise self.wrong(key, value, f"whole numbers above 0 for all {layers} layers")
        return numbers

    def torch_dtype(self) -> torch.dtype | None:
        """The checkpoint's dtype; None where config.json leaves it to the weights."""
        value = self.raw("dtype")
        if value is None or value == "auto":
            return None
        dtype = _DTYPES.get(str(value).removeprefix("torch."))
        if dtype is None:
            raise self.wrong("dtype", value, f"auto or {' or '.join(_DTYPES)}")
        return dtype

    def expect(self, key: str, default: T, *allowed: T) -> None:
        """Refuse, by name, a setting whose other values are not built."""
        value = self._one(key)
        if value is not None and value != default and value not in allowed:
            raise self.wrong(key, value, " or ".join(repr(v) for v in (default, *allowed)))

    def wrong(self, key: str, value: Any, expected: str) -> UserError:
        """The error for a value of this file, under the name it has there."""
        found = f"{key} missing" if value is None else f"{self._spelled(key)} = {_short(value)}"
        return UserError(found, expected, self.where)

    def _spelled(self, key: str) -> str:
        return next((name for name in ALIASES.get(key, ()) if self._values.get(name) is not None), key)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
