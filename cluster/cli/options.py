"""Typer flags from ServeConfig, so that every option is declared once."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Optional, get_type_hints

import typer

from cluster.config import ServeConfig, default_of, flag_name
from experts.errors import UserError

Model = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="Folder with a checkpoint. Default: the small model that ships."),
]


def serve_flags(skip: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command every ServeConfig field as a flag; it gets them, None where not given, as the dict `flags`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(**given: Any) -> Any:
            flags = {name: given.pop(name) for name in names}
            return command(**given, flags=flags)

        own = [p for p in inspect.signature(command).parameters.values() if p.name != "flags"]
        flagged = [_parameter(name) for name in names]
        wrapper.__signature__ = inspect.Signature(own + flagged)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in own + flagged}
        wrapper.__doc__ = command.__doc__
        return wrapper

    names = [f.name for f in fields(ServeConfig) if f.name not in skip]
    return decorate


def _parameter(name: str) -> inspect.Parameter:
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
    declared = typer.Option(flag, help=text, metavar=metavar, show_default=False)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[Optional[kind], declared],  # noqa: UP045
    )


def model_folder(model: str | None) -> Path:
    """MODEL as a folder; the small model when there is none. Raises UserError for an empty name."""
    if model == "":
        raise UserError("''", "a folder with a checkpoint, or nothing for the small model", "MODEL")
    if model is not None:
        return Path(model)
    from router_svc.demo_model.path import checkpoint_path  # not needed with a model of one's own

    return checkpoint_path()
