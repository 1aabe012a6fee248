"""`tokenyard dump`: what every process of the running cluster is doing, in one page."""

import json

from cluster.cli.connect import connect
from cluster.cli.generate import AsJson, Target
from experts.dump import page, plain


def dump(target: Target = "127.0.0.1:50051", as_json: AsJson = False) -> None:
    """Show every rank's threads, with epoch, step, layer and whom it waits for."""
    with connect(target) as client:
        found = client.dump()
    if as_json:
        print(json.dumps({"processes": [plain(process) for process in found]}))
    else:
        print(page(found, target), end="")
