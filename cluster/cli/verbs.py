"""The verbs of the `tokenyard` command, and the one place where errors become a line and an exit code.

Only the verb that is called is loaded, so that none pays for what another imports.
"""

import importlib.util
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import Abort, Exit, TyperException

from cluster.cli.lazy import load
from cluster.serve.notes import say
from experts import env
from experts.errors import UserError

# A verb's function has its name and lies in a file of that name; `bench` has verbs of its own.
VERBS = {
    "serve": "Start a cluster and serve until Ctrl-C.",
    "generate": "Complete a prompt, streamed to the terminal.",
    "chat": "Talk to the model.",
    "status": "Show the running cluster.",
    "plan": "Plan a placement from recorded loads.",
    "simulate": "Judge balancing policies on made or recorded traffic.",
    "top": "Watch the running cluster.",
    "rebalance": "Plan now and move experts.",
    "dump": "Show what every process of the running cluster is doing.",
    "bench": "Measure.",
}


def run(verb: str) -> int:
    """Do what the command line says; the exit code. verb: its first word, which is loaded if there is such a verb."""
    try:
        _check_names()
        code = _app(verb)(standalone_mode=False)
    except UserError as error:
        return _line(str(error), 2)
    except TyperException as error:
        text = error.format_message() if hasattr(error, "format_message") else str(error)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(text)
            return 2
        return _line(text, 2)
    except Abort:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exit as done:
        return done.exit_code
    except Exception as error:  # one line; the traceback on request
        if env.wants_traceback():
            raise
        return _line(f"{type(error).__name__}: {error} (TOKENYARD_TRACEBACK=1 shows where)", 1)
    return code if isinstance(code, int) else 0


def _app(verb: str) -> typer.Typer:
    app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback(invoke_without_command=True)(_root)
    for name, text in VERBS.items():
        if name != verb:
            app.command(name, help=text)(_not_loaded)
        elif name == "bench":
            app.add_typer(load("cluster.cli.bench").app, name=name, help=text)
        else:
            app.command(name, help=text)(getattr(load(f"cluster.cli.{name}"), name))
    return app


def _root(show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Expert-parallel serving of sparse mixture-of-experts models."""
    if show_version:
        print(f"tokenyard {version('tokenyard')}")
        raise typer.Exit


def _not_loaded() -> None:
    """Stands for a verb in the list of verbs."""
    raise AssertionError("the verb that is called is loaded")


def _line(message: str, code: int) -> int:
    say("tokenyard: " + " ".join(message.split()))
    return code


def _check_names() -> None:
    """Packages named `experts` and `router_svc` of other projects on the path would be used instead of ours."""
    home = Path(__file__).resolve().parents[2]
    for name in ("experts", "router_svc"):
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is not None and home not in origin.parents:
            raise UserError(f"one at {origin}", f"tokenyard's in {home}", f"package {name}")
