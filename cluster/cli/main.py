"""The `tokenyard` command: verbs, and the one place where errors become a line and an exit code."""

import importlib.util
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import Abort, Exit, TyperException

from cluster.cli import bench, chat, generate, plan, rebalance, serve, simulate, status, top
from experts.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command("serve", help="Start a cluster and serve until Ctrl-C.")(serve.serve)
app.command("generate", help="Complete a prompt, streamed to the terminal.")(generate.generate)
app.command("chat", help="Talk to the model.")(chat.chat)
app.command("status", help="Show the running cluster.")(status.status)
app.command("plan", help="Plan a placement from recorded loads.")(plan.plan)
app.command("simulate", help="Judge balancing policies on made or recorded traffic.")(simulate.simulate)
app.command("top", help="Watch the running cluster.")(top.top)
app.command("rebalance", help="Plan now and move experts.")(rebalance.rebalance)
app.add_typer(bench.app, name="bench")


@app.callback(invoke_without_command=True)
def root(show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Expert-parallel serving of sparse mixture-of-experts models."""
    if show_version:
        print(f"tokenyard {version('tokenyard')}")
        raise typer.Exit


def main() -> None:
    """Console entry: 0 done, 1 the work failed, 2 wrong use or input."""
    _check_names()
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        _end(str(error), 2)
    except TyperException as error:
        told = error.format_message() if hasattr(error, "format_message") else str(error)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(told)
            sys.exit(2)
        _end(told, 2)
    except (KeyboardInterrupt, Abort):
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exit as done:
        sys.exit(done.exit_code)
    except Exception as error:  # told in a line; the traceback on request
        if os.environ.get("TOKENYARD_TRACEBACK"):
            raise
        _end(f"{type(error).__name__}: {error} (TOKENYARD_TRACEBACK=1 shows where)", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _end(message: str, code: int) -> None:
    print("tokenyard: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)


def _check_names() -> None:
    """Packages named `experts` and `router_svc` of other projects on the path would be used instead of ours."""
    home = Path(__file__).resolve().parents[2]
    for name in ("experts", "router_svc"):
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is not None and home not in origin.parents:
            _end(f"package {name}: found one at {origin}, expected tokenyard's in {home}", 2)


if __name__ == "__main__":  # python -m cluster.cli.main
    main()
