"""`python -m cluster.kernels [--all]`: compile the C kernels ahead of their first use, for `make venv` and the image.

Knows which sources there are; where they are kept is experts.kernels.build's.
"""

import argparse
import sys

from cluster.balance.kernel import SOURCES as PLANNER
from experts.kernels.build import SOURCES as EXPERTS
from experts.kernels.build import BuildFailed, best_target, library, processor_flags, targets


def main() -> int:
    """Compile what is missing and print where each library is; 1 and one line if that can't be done."""
    parser = argparse.ArgumentParser(prog="python -m cluster.kernels", description="Compile the C kernels.")
    parser.add_argument("--all", action="store_true", help="for every processor of this kind, not only for this one")
    chosen = targets() if parser.parse_args().all else (best_target(processor_flags()),)
    try:
        for target in chosen:
            for sources in (EXPERTS, PLANNER):
                print(library(target, sources))
    except BuildFailed as error:
        print(f"C kernels not compiled: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
