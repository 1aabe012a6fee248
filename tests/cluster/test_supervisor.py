"""The supervisor's own class in this process, without Ray: what it does about work of its own that ends."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cluster.ranks import RankHandle
from cluster.supervisor import Supervisor
from tests import checkpoints
from tests.topologies import plan_for


class Rank:
    """Stands where a rank's actor is. `bad`: what its first `keep` raises."""

    def __init__(self, bad: BaseException | None = None) -> None:
        self.bad = bad
        self.left: list[str] = []
        self.kept = asyncio.Event()
        self.keep = SimpleNamespace(remote=self._keep)
        self.leave = SimpleNamespace(remote=self.left.append)

    async def _keep(self) -> None:
        bad, self.bad = self.bad, None
        self.kept.set()
        if bad is not None:
            raise bad


def serving(folder: Path, *ranks: Any) -> Supervisor:
    """A supervisor whose ranks are all in epoch 1."""
    plan = plan_for(folder, "1+2")
    supervisor = Supervisor(plan, "tests", "the log folder")
    supervisor._ranks = [RankHandle(seat, actor) for seat, actor in zip(plan.seats, ranks, strict=True)]
    supervisor._life.joined(supervisor._life.next_epoch())
    for handle in supervisor._ranks:
        supervisor._watch.keep(handle)
    return supervisor


def told(supervisor: Supervisor, kind: str) -> list[str]:
    return [event["text"] for event in supervisor._events.told() if event["kind"] == kind]


async def test_one_bad_lease_call_is_an_event_and_no_more(tmp_path: Path) -> None:
    ranks = Rank(ValueError("odd")), Rank(), Rank()
    supervisor = serving(checkpoints.make("qwen2_moe", tmp_path), *ranks)
    for rank in ranks:
        await asyncio.wait_for(rank.kept.wait(), 30)
    await asyncio.sleep(0)
    assert told(supervisor, "lease") == ["lease of rank 0 could not be renewed: ValueError: odd"]
    assert supervisor._life.state == "ready"
    supervisor._watch.stop()


async def test_a_lease_task_that_ends_degrades_the_cluster_at_once(tmp_path: Path) -> None:
    ranks = Rank(), Rank(SystemExit(1)), Rank()
    supervisor = serving(checkpoints.make("qwen2_moe", tmp_path), *ranks)
    version = supervisor._life.version
    _, state, reason = await asyncio.wait_for(supervisor.watch(version), 30)
    assert state == "degraded"
    assert "lease of rank 1 ended with SystemExit" in reason
    assert "start it again (tokenyard serve); logs are in the log folder" in reason
    assert told(supervisor, "degraded") == [reason]
    assert all(rank.left == [reason] for rank in ranks), "requests end, and with the reason"
    supervisor._watch.stop()
