"""A recording that can't be written at the end: a line that names it and exit code 1, and what there is of it is kept."""

from pathlib import Path

import pytest

from cluster.balance.trace import LoadTrace
from tests.patience import PATIENCE, wait_until
from tests.serving import run, serving


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--expert-workers", "0"], []], ids=["one", "ray"])
def test_a_recording_that_can_not_be_written_fails_by_name(options: list[str], tmp_path: Path) -> None:
    folder, said = tmp_path / "there", []
    folder.mkdir()
    file = folder / "x.npz"
    with serving(*options, "--record-loads", str(file), "--record-interval", "1", said=said) as (process, target, _):
        assert run("generate", "12+30=", "--target", target, "--max-tokens", "20").returncode == 0
        wait_until(lambda: list(folder.glob("x.parts/*.npz")), "a part")
        folder.rename(tmp_path / "away")
        assert run("generate", "30+12=", "--target", target, "--max-tokens", "20").returncode == 0, "serving goes on"
        wait_until(
            lambda: f"a part of {file} can't be written" in run("status", "--events", "--target", target).stdout,
            "the event",
        )
        process.terminate()
        assert process.wait(3 * PATIENCE) == 1
    assert any(str(file) in line and "can't be written" in line for line in said), said
    assert LoadTrace.load(tmp_path / "away" / "x.parts").loads.sum() > 0
