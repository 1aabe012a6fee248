"""No verb imports torch or Ray before it needs them."""

import subprocess
import sys

import pytest

_RUN = """
import sys
from cluster.cli.main import main
try:
    main()
except SystemExit:
    print("loaded:", *(name for name in ("torch", "ray") if name in sys.modules), file=sys.stderr)
"""
_LINES = (
    "--help",
    "--version",
    "serve --help",
    "plan --help",
    "simulate --help",
    "simulate --steps 20 --layers 1",
    "bench --help",
    "bench throughput --help",
    "generate x --target 127.0.0.1:1",
    "chat --target 127.0.0.1:1",
    "status --target 127.0.0.1:1",
    "top --target 127.0.0.1:1",
    "rebalance --target 127.0.0.1:1",
    "dump --target 127.0.0.1:1",
)


@pytest.mark.parametrize("line", _LINES)
def test_neither_torch_nor_ray_is_imported(line: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *line.split()], capture_output=True, text=True, timeout=90, input="hello"
    )
    assert done.stderr.splitlines()[-1] == "loaded:", done.stderr
