"""Write `sampling_arguments.py` from the table of sampling parameters: `python -m router_svc.make_arguments`.

A type checker reads keyword arguments from source only, so that they are made as the .proto's stubs are; a test compares.
"""

from pathlib import Path

from router_svc.sampling import PARAMETERS, Kind

_TYPES: dict[Kind, str] = {
    "int": "int",
    "float": "float",
    "bool": "bool",
    "strings": "str | Sequence[str]",
    "ids": "Sequence[int]",
    "biases": "Mapping[int, float]",
}


def source() -> str:
    """The text of sampling_arguments.py."""
    lines = [
        '"""Sampling parameters as keyword arguments. Written by make_arguments from router_svc/sampling.py: do not edit."""',
        "",
        "from collections.abc import Mapping, Sequence",
        "from typing import TypedDict",
        "",
        "",
        "class SamplingArguments(TypedDict, total=False):",
        '    """What a call may set; None or absent = the server\'s default."""',
        "",
    ]
    lines += [f"    {p.name}: {_TYPES[p.kind]} | None  # {p.help}" for p in PARAMETERS]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("sampling_arguments.py").write_text(source(), encoding="utf-8")
