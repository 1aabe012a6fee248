"""Ports: verbs are checked, calls begin at once and end by their deadline, errors come out as they were raised."""

import asyncio
import inspect
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.control.supervisor import Supervisor
from cluster.simulate.source import SourceProcess
from experts.worker import deadlines, remote
from experts.worker.deadlines import deadline
from experts.worker.host import WorkerHost, WorkerProcess
from experts.worker.remote import Call, tell
from router_svc.ingress.door import Door
from tests.source import ROOT


class Counter:
    """Something that is called from elsewhere."""

    def __init__(self) -> None:
        self.total = 0
        self.ended = False

    async def add(self, number: int) -> int:
        self.total += number
        return self.total

    async def refuse(self) -> None:
        raise KeyError("no")

    async def stand_still(self) -> None:
        await asyncio.sleep(3600)

    def kill(self) -> None:
        self.ended = True


@pytest.fixture(autouse=True)
def _verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    verbs = {"add": None, "refuse": None, "stand_still": 0.05}
    monkeypatch.setitem(deadlines._VERBS, "Counter", verbs)


async def test_a_call_gives_what_the_verb_returned_and_raises_what_it_raised() -> None:
    port = remote.here(Counter())
    assert await port.add(2) == 2
    assert await port.add(number=3) == 5
    with pytest.raises(KeyError, match="no"):
        await port.refuse()
    with pytest.raises(TimeoutError, match=r"Counter.stand_still did not answer within 0.05 s"):
        await port.stand_still()


async def test_a_call_that_nobody_waits_for_runs_and_its_error_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    port = remote.here(counter := Counter())
    with caplog.at_level(logging.INFO, "experts.worker.remote"):
        tell(port.add(1))
        tell(port.refuse())
        await asyncio.sleep(0.01)
    assert counter.total == 1
    assert "Counter.refuse ended with KeyError" in caplog.text


async def test_only_verbs_can_be_called_and_an_object_of_this_process_can_be_had_and_ended() -> None:
    port = remote.here(counter := Counter())
    for name in ("subtract", "kill", "_private", "total"):
        with pytest.raises(AttributeError, match="Counter has no verb"):
            getattr(port, name)
    assert remote.target(port) is counter
    remote.kill(port)
    assert counter.ended
    assert isinstance(port.add(1), Call)


def test_every_verb_has_a_deadline() -> None:
    for kind in (WorkerHost, WorkerProcess, SourceProcess, Supervisor, Door):
        for name, _ in inspect.getmembers(kind, inspect.iscoroutinefunction):
            if not name.startswith("_"):
                deadline(kind, name)
    with pytest.raises(KeyError, match=r"Door.knock has no deadline"):
        deadline(Door, "knock")


def test_calls_of_actors_stand_in_one_file() -> None:
    calling = [
        str(path.relative_to(ROOT))
        for package in ("experts", "router_svc", "cluster")
        for path in (ROOT / package).rglob("*.py")
        if ".remote(" in path.read_text()
    ]
    assert calling == ["experts/worker/remote.py"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        ("port.prepares(record)", 'has no attribute "prepares"'),
        ("port.prepare(3)", 'incompatible type "int"; expected "EpochRecord"'),
        ("port.stage([])", 'Missing positional argument "bandwidth"'),
        ("port.drop_staged()", ""),
    ],
)
def test_the_type_checker_knows_verbs_and_arguments(call: str, complaint: str, tmp_path: Path) -> None:
    lines = (
        "from experts.worker.host import WorkerHost",
        "from experts.epoch.membership import EpochRecord",
        "async def f(port: WorkerHost, record: EpochRecord) -> None:",
        f"    await {call}",
    )
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path), "-c", "\n".join(lines)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    if complaint:
        assert complaint in found.stdout
    else:
        assert found.returncode == 0, found.stdout
