"""`plan` and `simulate` as a researcher types them; every wrong file or number is one line and exit code 2."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.balance.trace import LoadTrace
from experts.placement import Placement

COMMAND = [sys.executable, "-m", "cluster.cli.main"]
MADE = ["--layers", "2", "--experts", "16", "--top-k", "2", "--tokens", "256", "--steps", "80"]


def run(*words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, timeout=120)


@pytest.fixture
def loads(tmp_path: Path) -> Path:
    path = tmp_path / "loads.npz"
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.full(12, 0.8), 3)
    LoadTrace(np.stack([rng.multinomial(600, weights) for _ in range(60)]).astype(np.int64)).save(path)
    return path


def test_plan_writes_a_placement_and_goes_on_from_it(loads: Path, tmp_path: Path) -> None:
    first, next_ = tmp_path / "a.npz", tmp_path / "b.npz"
    made = run("plan", loads, "--ranks", 4, "--slots-per-rank", 4, "--out", first, "--json")
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    assert told["moves"] == 0
    assert 0 <= told["excess_after"] <= told["excess_before"] + 1e-9
    assert Placement.load(first, 4).experts == 12
    again = run(
        "plan", loads, "--ranks", 4, "--slots-per-rank", 4, "--current", first, "--dead-ranks", "2", "--out", next_
    )
    assert again.returncode == 0, again.stderr
    placed = Placement.load(next_, 4)
    assert (placed.local(2) == -1).all(), "a dead rank holds nothing"
    assert not list(tmp_path.glob("*.part"))


def test_simulate_tells_every_policy_in_every_form(loads: Path, tmp_path: Path) -> None:
    done = run(
        "simulate", loads, "--ranks", 4, "--slots-per-rank", 4, "--policy", "none", "--policy", "tokenyard", "--json"
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["policy"] for row in rows] == ["none", "tokenyard"]
    for row in rows:
        assert {"balancedness", "makespan_ratio", "experts_moved", "planner_seconds"} <= set(row)
    assert rows[1]["excess"] < rows[0]["excess"]
    table = list(csv.DictReader(io.StringIO(run("simulate", "--regime", "corr", *MADE, "--ranks", 4, "--csv").stdout)))
    assert [row["policy"] for row in table] == ["none", "eplb", "tokenyard"]
    report = tmp_path / "r.html"
    plain = run("simulate", "--regime", "burst", *MADE, "--ranks", 4, "--report", report)
    assert "tokenyard: excess" in plain.stdout
    assert report.read_text().startswith("<!doctype html>")


def test_all_steps_of_a_recording_are_judged(tmp_path: Path) -> None:
    """500 even steps, then an expert with 2,000 of 2,750 tokens: the whole has an excess of 1.92 to 1.96."""
    table = np.full((2000, 1, 16), 50)
    table[500:, :, 0] = 2000
    path = saved(tmp_path / "t.npz", loads=table)
    words = ["simulate", path, "--ranks", 4, "--slots-per-rank", 4, "--policy", "none", "--json"]
    assert 1.92 < json.loads(run(*words).stdout)["excess"] < 1.96
    first = run(*words, "--steps", 500)
    assert json.loads(first.stdout)["excess"] == 0
    assert first.stderr == f"tokenyard: the first 500 of 2000 steps of {path}\n"


def test_a_policy_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from cluster.balance.policies.base import Policy\n"
        "class Stay(Policy):\n    name = 'stay'\n    def plan(self, s):\n        return s.current\n"
        "class Broken(Policy):\n    def plan(self, s):\n        return 1 / 0\n"
        "class Exits(Broken):\n    name = 'exits'\n    def plan(self, s):\n        raise SystemExit(7)\n"
        "class Other:\n    pass\n"
    )
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(3)\n")

    def of(policy: str) -> "subprocess.CompletedProcess[str]":
        words = [*COMMAND, "simulate", "--regime", "zipf", *MADE, "--ranks", "4", "--policy", policy, "--json"]
        return subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=tmp_path)

    assert json.loads(of("mine:Stay").stdout)["experts_moved"] == 0
    for policy, told in (
        ("mine:Broken", "ZeroDivisionError"),
        ("mine:Exits", "'exits' raised SystemExit"),
        ("mine:Other", "not a policy"),
        ("mine:None_", "importable"),
        ("leaves:X", "'leaves:X' raised SystemExit"),
    ):
        done = of(policy)
        assert done.returncode == 2
        assert told in done.stderr
        assert done.stderr.count("\n") == 1


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"other": np.zeros(1)}, "the key loads"),
        ({"loads": np.zeros((2, 2), dtype=np.int64)}, "[steps, layers, experts]"),
        ({"loads": np.ones((2, 2, 8), dtype=np.int32)}, "int64"),
        ({"loads": np.full((2, 2, 8), np.nan)}, "NaN"),
        ({"loads": np.full((2, 2, 8), -1, dtype=np.int64)}, "counts of 0 or more"),
        ({"loads": np.zeros((2, 2, 8), dtype=np.int64)}, "no tokens"),
        ({"loads": np.ones((2, 2, 8), dtype=np.int64), "phase": np.zeros(3, dtype=np.uint8)}, "phase"),
        (
            {"loads": np.ones((2, 2, 8), dtype=np.int64), "source_loads": np.ones((2, 1, 2, 7), dtype=np.int64)},
            "source_loads",
        ),
    ],
)
def test_wrong_loads_are_one_line_and_nothing_is_written(arrays: dict[str, Any], told: str, tmp_path: Path) -> None:
    path, out = saved(tmp_path / "wrong.npz", **arrays), tmp_path / "out.npz"
    done = run("plan", path, "--ranks", 2, "--slots-per-rank", 5, "--out", out)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--ranks", "2", "--slots-per-rank", "5"], "at least 12"),
        (["--ranks", "4", "--slots-per-rank", "3", "--dead-ranks", "1"], "3 live ranks"),
        (["--ranks", "4", "--slots-per-rank", "4", "--dead-ranks", "9"], "ranks 0 to 3"),
        (["--ranks", "4", "--slots-per-rank", "4", "--dead-ranks", "x"], "rank numbers"),
        (["--ranks", "1000", "--slots-per-rank", "100000000"], "at most"),
        (["--ranks", "0", "--slots-per-rank", "4"], "1 to 1024 ranks"),
        (["--ranks", "4", "--slots-per-rank", "4", "--bandwidth", "0"], "above 0"),
    ],
)
def test_wrong_shapes_are_one_line(words: list[str], told: str, loads: Path, tmp_path: Path) -> None:
    done = run("plan", loads, *words, "--out", tmp_path / "out.npz")
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--regime", "storm"], "one of uniform"),
        (["--policy", "best"], "one of none, eplb"),
        (["--split", "odd"], "exact or even"),
        (["--top-k", "65"], "at most one pick per expert"),
        (["nowhere.npz"], "no such file"),
        (["nowhere.npz", "--regime", "zipf"], "one of them"),
        (["--report", "/nowhere/r.html"], "a folder that exists"),
        (["--leave", "3"], "--leave: found '3', expected RANK@STEP, as in 3@100"),
        (["--join", "-1@5"], "RANK@STEP"),
        (["--leave", "8@100"], "ranks 0 to 7"),
        (["--leave", "2@0"], "steps 1 to 499"),
        (["--leave", "2@500"], "steps 1 to 499"),
        (["--leave", "2@100", "--leave", "2@200"], "the other change first"),
        (["--slots-per-rank", "8", "--leave", "2@100"], "56 slots on 7 live ranks"),
        (["--speeds", "1,2"], "8 numbers above 0"),
        (["--speeds", "1,1,1,1,1,1,1,0"], "8 numbers above 0"),
        (["--speeds", "fast"], "numbers, as in"),
        (["--far", "0"], "above 0"),
    ],
)
def test_wrong_simulations_are_one_line(words: list[str], told: str) -> None:
    done = run("simulate", *words)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_placement_of_another_shape_or_without_an_expert(loads: Path, tmp_path: Path) -> None:
    wrong = saved(tmp_path / "p.npz", slot_expert=np.tile(np.arange(16, dtype=np.int64) % 12, (2, 1)))
    done = run("plan", loads, "--ranks", 4, "--slots-per-rank", 4, "--current", wrong, "--out", tmp_path / "o.npz")
    assert done.returncode == 2
    assert "2 layers" in done.stderr
    gap = saved(tmp_path / "q.npz", slot_expert=np.tile(np.r_[np.arange(11), 0, 1, 2, 13, 12], (3, 1)).astype(np.int64))
    done = run("plan", loads, "--ranks", 4, "--slots-per-rank", 4, "--current", gap, "--out", tmp_path / "o.npz")
    assert done.returncode == 2
    assert "no slot for expert 11" in done.stderr


def test_ranks_leave_join_and_differ_in_simulations() -> None:
    base = [
        "simulate",
        "--regime",
        "zipf",
        *MADE,
        "--ranks",
        4,
        "--slots-per-rank",
        6,
        "--policy",
        "tokenyard",
        "--json",
    ]
    whole, away, joined, slow = (
        json.loads(run(*base, *more).stdout)
        for more in ([], ["--leave", "1@30"], ["--join", "1@30"], ["--speeds", "1,1,1,0.5"])
    )
    assert whole["experts_moved"] < away["experts_moved"], "what the rank held went elsewhere"
    assert whole["experts_moved"] < joined["experts_moved"], "the new rank got experts"
    assert joined["excess"] < 1, "who is away does not count as an idle rank"
    assert slow["excess"] < 0.1, "the excess is that of the ranks' time"
    near = json.loads(run(*base, "--ranks-per-node", 2).stdout)
    assert 0 <= near["experts_moved_between_nodes"] <= near["experts_moved"]
    assert whole["experts_moved_between_nodes"] == 0
