"""The C of planner and split under address and undefined-behaviour sanitizers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PLANNER = [ROOT / "cluster/balance/kernels" / name for name in ("improve.c", "layout.c")]
SPLIT = [ROOT / "experts/kernels/split.c"]


def build(sources: list[Path], out: Path) -> Path:
    flags = ["-g", "-O1", "-std=gnu11", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    command = ["cc", *flags, "-fPIC", "-shared", *map(str, sources), "-o", str(out), "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no C compiler here")
    if done.returncode:
        pytest.skip(f"this compiler has no sanitizers: {done.stderr.splitlines()[0]}")
    return out


@pytest.mark.slow
def test_random_problems_are_clean(tmp_path: Path) -> None:
    planner, split = build(PLANNER, tmp_path / "planner.so"), build(SPLIT, tmp_path / "split.so")
    name = "libasan.so"
    runtime = subprocess.run(["cc", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("the sanitizer's runtime can't be loaded first here")
    environment = {**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "tests.cluster.balance.sanitized", str(planner), str(split)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("clean")
