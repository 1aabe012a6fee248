"""`tokenyard rebalance`: plan now, and move experts unless it is a dry run."""

import json
from typing import Annotated

import typer

from cluster.cli.connect import connect
from cluster.cli.generate import AsJson, Target

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only tell what would be moved.")]


def rebalance(target: Target = "127.0.0.1:50051", dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Plan from the newest loads and move experts."""
    with connect(target) as client:
        found = client.rebalance(dry_run)
    if as_json:
        print(json.dumps(found))
    else:
        print(found["text"] + (" (dry run)" if dry_run else f"; placement {found['placement_version']} is in use"))
