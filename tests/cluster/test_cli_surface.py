"""What the contract names and this version does not have is refused by name with exit code 2, never taken and ignored."""

import subprocess
import sys

import pytest

_COMMAND = [sys.executable, "-m", "cluster.cli.main"]
_MISSING = (
    "serve --deterministic",
    "serve --quantization int8",
    "serve --api-key KEY",
    "serve --api-key-file FILE",
    "serve --tls-cert FILE",
    "serve --tls-key FILE",
    "serve --tls-client-ca FILE",
    "bench throughput --quantization int8",
    "generate x --api-key KEY",
    "chat --api-key KEY",
    "status --api-key KEY",
    "drain 1",
    "scale --expert-workers 2",
    "up cluster.yaml",
    "down cluster.yaml",
    "doctor",
    "convert a b --quantization int4",
    "bench serve --rate 1",
    "bench kernels",
)


@pytest.mark.parametrize("line", _MISSING)
def test_missing_names_are_refused_by_name(line: str) -> None:
    done = subprocess.run([*_COMMAND, *line.split()], capture_output=True, text=True, timeout=90)
    assert done.returncode == 2
    assert any(word in done.stderr for word in line.split()[:3]), done.stderr
    assert done.stderr.count("\n") == 1


def test_the_module_runs_like_the_command() -> None:
    done = subprocess.run([*_COMMAND, "--version"], capture_output=True, text=True, timeout=90)
    assert done.stdout.startswith("tokenyard ")
