"""A cell over hosts of this process: what it does about work of its own that ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experts.worker import remote
from experts.worker.host import WorkerHost
from experts.worker.worker import WorkerOrder
from tests import checkpoints
from tests.patience import wait_until
from tests.topologies import ThreadCluster, plan_for


class Odd(WorkerHost):
    """Its first sign of life is answered with an error."""

    answered = 0

    async def keep(self) -> None:
        self.answered += 1
        if self.answered == 1:
            raise ValueError("odd")


class Exits(WorkerHost):
    """Whoever asks it for a sign of life is asked to exit."""


def odd_or_not(order: WorkerOrder) -> WorkerHost:
    return remote.here((Odd if order.seat.rank == 0 else WorkerHost)(order))


def exits(order: WorkerOrder) -> WorkerHost:
    port = remote.here(WorkerHost(order))
    if order.seat.rank == 1:

        def leave() -> None:
            raise SystemExit(1)

        port.keep = leave  # type: ignore[method-assign, assignment]
    return port


@contextmanager
def cell(folder: Path, spawn: object) -> Iterator[ThreadCluster]:
    cluster = ThreadCluster(plan_for(folder, "1+2"), spawn)  # type: ignore[arg-type]
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def told(cluster: ThreadCluster, kind: str) -> list[str]:
    return [event["text"] for event in cluster.events.entries() if event["kind"] == kind]


def test_one_bad_lease_call_is_an_event_and_no_more(tmp_path: Path) -> None:
    with cell(checkpoints.make("qwen2_moe", tmp_path), odd_or_not) as cluster:
        wait_until(lambda: bool(told(cluster, "lease")), "an event")
        assert told(cluster, "lease") == ["lease of rank 0 could not be renewed: ValueError: odd"]
        assert cluster.cell.life.state == "ready"


def test_a_lease_task_that_ends_degrades_the_cell_at_once(tmp_path: Path) -> None:
    with cell(checkpoints.make("qwen2_moe", tmp_path), exits) as cluster:
        wait_until(lambda: cluster.cell.life.state == "degraded", "degraded")
        reason = cluster.cell.life.reason
        assert "lease of rank 1 ended with SystemExit" in reason
        assert "start it again (tokenyard serve)" in reason
        assert told(cluster, "degraded") == [reason]
