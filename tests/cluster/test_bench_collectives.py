"""bench collectives: every kind of exchange in turn, and the floor beside them."""

import json
import subprocess
import sys

import pytest

from experts.kernels.loaded import loaded


@pytest.mark.skipif(loaded() is None, reason="no C kernels")
def test_every_kind_is_measured_and_the_floor_beside_them() -> None:
    line = "bench collectives --floor --json --batch 2 --hidden 64 --rounds 1 --layers 30"
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli.main", *line.split()], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(row) for row in done.stdout.splitlines()]
    assert [row["kind"] for row in rows] == ["links", "gloo", "floor"]
    assert all(0 < row["p50"] <= row["p99"] for row in rows)
    assert all(row["cpu"] > 0 for row in rows)


def test_an_unknown_kind_is_refused() -> None:
    command = [sys.executable, "-m", "cluster.cli.main", "bench", "collectives", "--exchange", "mpi"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 2
    assert "mpi" in done.stderr
