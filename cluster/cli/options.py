"""Typer flags from the tables of options and sampling parameters, so that each is declared once."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Optional, get_type_hints

import typer

from cluster.config import ServeConfig, default_of, flag_name
from experts.errors import UserError
from router_svc.sampling import PARAMETERS, Kind, Parameter

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
Model = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="Folder with a checkpoint. Default: the small model that ships."),
]


def serve_flags(skip: tuple[str, ...] = ()) -> Decorator:
    """Give a command every ServeConfig field as a flag; it gets them, None where not given, as the dict `flags`."""
    return _takes("flags", [_option(f.name) for f in fields(ServeConfig) if f.name not in skip])


def sampling_flags() -> Decorator:
    """Give a command the sampling parameters as flags; it gets them, None where not given, as the dict `sampling`."""
    return _takes("sampling", [_sampling_flag(p) for p in PARAMETERS if p.flag])


def _takes(name: str, flags: list[inspect.Parameter]) -> Decorator:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(**given: Any) -> Any:
            taken = {flag.name: given.pop(flag.name) for flag in flags}
            return command(**given, **{name: taken})

        own = [p for p in inspect.signature(command).parameters.values() if p.name != name]
        wrapper.__signature__ = inspect.Signature(own + flags)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in own + flags}
        wrapper.__doc__ = command.__doc__
        return wrapper

    return decorate


def _option(name: str) -> inspect.Parameter:
    hint = get_type_hints(ServeConfig)[name]
    kind = next(arg for arg in hint.__args__ if arg is not type(None)) if isinstance(hint, UnionType) else hint
    default = default_of(name)
    text = next(f for f in fields(ServeConfig) if f.name == name).metadata["help"]
    if default is not None and kind is not bool:
        text += f" [default: {default}]"
    flag = f"--{flag_name(name)}"
    if kind is bool and default is None:  # three-valued: on, off, decided at start
        flag += f"/--no-{flag_name(name)}"
    metavar = {int: "N", float: "S", str: "NAME", Path: "FILE"}.get(kind)
    return _flag(name, kind, typer.Option(flag, help=text, metavar=metavar, show_default=False))


def _sampling_flag(p: Parameter) -> inspect.Parameter:
    kind, metavar = _SAMPLING_FLAGS[p.kind]
    word = flag_name(p.name)
    flag = f"--{word}/--no-{word}" if p.default is True else f"--{word}"
    bounds: dict[str, Any] = {"min": p.low, "max": p.high} if p.kind in ("int", "float") else {}
    text = p.help if p.most is None and p.kind != "ids" else f"{p.help} May be given several times."
    return _flag(p.name, kind, typer.Option(flag, help=text, metavar=metavar, show_default=False, **bounds))


_SAMPLING_FLAGS: dict[Kind, tuple[Any, str | None]] = {
    "int": (int, "N"),
    "float": (float, "X"),
    "bool": (bool, None),
    "strings": (list[str], "TEXT"),
    "ids": (list[int], "ID"),
}


def _flag(name: str, kind: Any, declared: Any) -> inspect.Parameter:
    annotation = Annotated[Optional[kind], declared]  # noqa: UP045
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def model_folder(model: str | None) -> Path:
    """MODEL as a folder; the small model when there is none. Raises UserError for an empty name."""
    if model == "":
        raise UserError("''", "a folder with a checkpoint, or nothing for the small model", "MODEL")
    if model is not None:
        return Path(model)
    from router_svc.demo_model.path import checkpoint_path  # not needed with a model of one's own

    return checkpoint_path()
