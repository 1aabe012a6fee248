"""The entry of the `tokenyard` command. Imports next to nothing, so that what has to come first does.

The verbs, and how their errors end, are in verbs.py.
"""

import sys

from cluster.cli.lazy import load
from cluster.serve.notes import drop_unwritable, open_closed
from cluster.serve.signals import taken


def main() -> None:
    """Console entry: 0 done, 1 the work failed, 2 wrong use or input."""
    verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    open_closed()
    if verb == "serve":
        taken()  # before anything that takes long: as pid 1 of a container a signal that nobody takes is lost
        drop_unwritable()
    try:
        sys.exit(load("cluster.cli.verbs").run(verb))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":  # python -m cluster.cli.main
    main()
