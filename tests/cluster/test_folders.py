"""Where a private Ray keeps its session: where TMPDIR says, as long as sockets fit below it."""

import os
import socket
from pathlib import Path

import pytest

from cluster.serve.folders import LONGEST, check_current_folder, session_folder
from experts.env import environment
from experts.errors import UserError


def made(where: Path | str) -> Path:
    with environment({"TMPDIR": str(where), "RAY_TMPDIR": None}):
        folder = session_folder()
    folder.rmdir()
    return folder


def test_tmpdir_is_used_up_to_the_longest_that_sockets_allow(capfd: pytest.CaptureFixture[str]) -> None:
    fits, too_long = (Path("/tmp") / ("x" * (LONGEST + more - len("/tmp/"))) for more in (0, 1))
    for folder in (fits, too_long):
        folder.mkdir(exist_ok=True)
    try:
        assert made(fits).parent == fits
        assert capfd.readouterr().err == ""
        assert made(too_long).parent == Path("/tmp")
        assert "TMPDIR" in capfd.readouterr().err
    finally:
        for folder in (fits, too_long):
            folder.rmdir()


def test_sockets_of_ray_fit_below_the_longest() -> None:
    base = Path("/tmp") / ("y" * (LONGEST - len("/tmp/")))
    base.mkdir()
    try:
        folder = made(base)
        sockets = folder / "session_2026-01-01_00-00-00_000000_4194304" / "sockets"
        sockets.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(sockets / "plasma_store"))
        (sockets / "plasma_store").unlink()
        for part in (sockets, sockets.parent, folder):
            part.rmdir()
    finally:
        base.rmdir()


def test_an_unusable_tmpdir_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    assert made("/nowhere/at/all").parent == Path("/tmp")
    assert "TMPDIR: No such file or directory" in capfd.readouterr().err


def test_a_removed_current_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(UserError, match="removed"):
        check_current_folder()
    monkeypatch.chdir(tmp_path)
    check_current_folder()


def test_variables_are_as_before_after_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "a:1")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with environment({"RAY_ADDRESS": None, "RAY_AUTH_MODE": "token"}):
        assert "RAY_ADDRESS" not in os.environ
        assert os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ["RAY_ADDRESS"] == "a:1"
    assert "RAY_AUTH_MODE" not in os.environ
