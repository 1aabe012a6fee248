"""Recordings: parts meanwhile, one file in the end; what can't be written is said and never lost in silence."""

import asyncio
import re
from pathlib import Path

import numpy as np
import pytest

from cluster.balance.loads import StepRow
from cluster.balance.trace import LoadTrace
from cluster.watch.recorder import LoadRecorder, Recording, check_writable
from experts.errors import UserError


def row(step: int, sources: int = 1) -> StepRow:
    loads = np.random.default_rng(step).integers(0, 9, (sources, 2, 4))
    return StepRow(1, step, step % 3, loads, np.ones((2, 2), dtype=np.int64), np.ones(2), np.ones(2))


def filled(path: Path, parts: tuple[int, ...] = (3, 2)) -> LoadRecorder:
    """A recorder that has written so many steps in each part; two sources from the second on."""
    recorder, step = LoadRecorder(path, "model", 2), 0
    for n, steps in enumerate(parts):
        for _ in range(steps):
            recorder.add(row(step, 1 + (n > 0)))
            step += 1
        recorder.flush()
    return recorder


def steps_of(path: Path) -> list[list[int]]:
    return LoadTrace.load(path).loads.sum(axis=2).tolist()


def expected(steps: int, first: int = 3) -> list[list[int]]:
    return [row(step, 1 + (step >= first)).loads.sum(axis=1).tolist() for step in range(steps)]


def test_parts_become_one_file_and_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    recorder = filled(path)
    assert sorted(p.name for p in tmp_path.glob("x.parts/*")) == ["0000.npz", "0001.npz"]
    recorder.add(row(5, 2))
    assert recorder.finish() == ""
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]
    trace = LoadTrace.load(path)
    assert steps_of(path) == expected(6)
    assert trace.source_loads is not None
    assert trace.source_loads.shape == (6, 2, 2, 4)
    assert (trace.source_loads.sum(axis=1) == trace.loads).all()
    assert trace.phase is not None
    assert trace.phase.tolist() == [0, 1, 2, 0, 1, 2]
    assert (trace.model, trace.top_k) == ("model", 2)


def test_after_a_crash_the_parts_are_read_by_either_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.npz"
    filled(path)
    assert steps_of(tmp_path / "x.parts") == expected(5)
    assert not caplog.text
    assert steps_of(path) == expected(5)
    assert "its parts are read" in caplog.text
    with pytest.raises(UserError, match=r"x\.parts, the parts of an earlier run"):
        check_writable(path)
    (tmp_path / "x.parts" / "0000.npz").rename(tmp_path / "x.npz")
    with pytest.raises(UserError, match="of two recordings"):
        LoadTrace.load(path)
    with pytest.raises(UserError, match=r"files 0001\.npz, expected 0000\.npz to 0000\.npz"):
        LoadTrace.load(tmp_path / "x.parts")


def test_where_nothing_can_be_written_is_found_at_the_start(tmp_path: Path) -> None:
    for path in (Path("/proc/x.npz"), tmp_path / "none" / "x.npz", tmp_path):
        with pytest.raises(
            UserError, match=re.escape(f"--record-loads: found {'no folder ' if path.parent.name == 'none' else ''}")
        ):
            check_writable(path)
    check_writable(tmp_path / "x.npz")
    assert not list(tmp_path.iterdir())


async def test_what_can_not_be_written_is_an_event_and_kept(tmp_path: Path) -> None:
    folder, events = tmp_path / "there", []
    folder.mkdir()
    recorder = LoadRecorder(folder / "x.npz", "model", 2)
    recording = Recording(recorder, 0.05, lambda kind, text: events.append((kind, text)))
    recording.add(row(0))
    while not list(folder.glob("x.parts/*.npz")):
        await asyncio.sleep(0.01)
    folder.rename(tmp_path / "away")
    recording.add(row(1))
    while not events:
        await asyncio.sleep(0.01)
    assert events[0][0] == "recording"
    assert f"a part of {folder / 'x.npz'} can't be written (No such file or directory)" in events[0][1]
    ended = await recording.end()
    assert ended.lost
    assert str(folder / "x.npz") in ended.text
    (tmp_path / "away").rename(folder)
    assert (await recording.end()).text == "", "what failed is tried again"
    assert steps_of(folder / "x.npz") == expected(2)


async def test_memory_is_bounded_and_a_gap_is_said(tmp_path: Path) -> None:
    events: list[str] = []
    path = tmp_path / "x.npz"
    recording = Recording(LoadRecorder(path, "model", 2, 100, 200), 1000, lambda kind, text: events.append(text))
    for step in range(4):  # 32 bytes each: the fourth is a part's
        recording.add(row(step))
    while not list(tmp_path.glob("x.parts/*.npz")):
        await asyncio.sleep(0.01)
    for step in range(4, 12):
        recording.add(row(step))
    ended = await recording.end()
    assert ended.lost
    assert "the newest 2 steps are missing" in ended.text
    assert len(events) == 1
    assert steps_of(path) == expected(10, 99)


async def test_a_recording_without_steps_says_so(tmp_path: Path) -> None:
    recording = Recording(LoadRecorder(tmp_path / "x.npz", "m", 2), 9, lambda kind, text: None)
    await asyncio.sleep(0)
    ended = await recording.end()
    assert not ended.lost
    assert "no step had tokens" in ended.text
    assert not list(tmp_path.iterdir())
