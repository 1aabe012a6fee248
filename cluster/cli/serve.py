"""`tokenyard serve`: check everything, then start in one process or on Ray, and serve until a signal."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.cli.lazy import load
from cluster.cli.options import Model, model_folder, serve_flags
from cluster.config import merge, read_yaml
from cluster.limits import check_processes, raise_file_limit
from cluster.serve.folders import check_current_folder
from cluster.serve.ray_address import announce
from cluster.serve.signals import taken


@serve_flags()
def serve(
    *,
    model: Model = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Flat YAML with the flags' names.")
    ] = None,
    flags: dict[str, Any],
) -> None:
    """Start a cluster and serve until Ctrl-C."""
    values = read_yaml(config) if config is not None else {}
    options = merge(flags, values)
    check_current_folder()
    if not options.one_process:
        announce(options.ray_address)
    raise_file_limit()
    check_processes(options)
    folder = model_folder(values.get("model") if model is None else model)
    # torch and Ray load only now, so that wrong flags are refused at once.
    plan = load("cluster.plan").make_plan(folder, options)
    where = "cluster.serve.run_local" if options.one_process else "cluster.serve.launch"
    load(where).run(plan, taken())
