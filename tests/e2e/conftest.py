"""One Ray for all end-to-end tests of a run, and clusters on it one after the other."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from ray import serve

from cluster.config import ServeConfig
from cluster.control.orders import Orders
from cluster.plan import make_plan
from cluster.serve.launch import RayCluster
from cluster.serve.loading import LoadingView
from cluster.serve.ray_session import RaySession
from tests.ports import free_port

Starter = Callable[..., AbstractContextManager[RayCluster]]


@pytest.fixture(scope="session")
def http_port() -> Iterator[int]:
    """Starts Ray and Serve, which clusters find there: Serve has one proxy, on this port."""
    session = RaySession("local", "tests")
    try:
        session.start()
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"})
        yield port
    finally:
        session.end(clean=True)


@pytest.fixture(scope="session")
def start_cluster(http_port: int) -> Starter:
    """A context manager: folder and ServeConfig fields in, a started cluster out."""

    @contextmanager
    def start(folder: Path, **options: object) -> Iterator[RayCluster]:
        config = replace(ServeConfig(), dtype="float32", grpc_port=0, http_port=http_port, **options)  # type: ignore[arg-type]
        plan = make_plan(folder, config, check_ports=False)
        cluster = RayCluster(Orders(plan))
        try:
            with LoadingView(plan.seats) as view:
                cluster.start(view)
            yield cluster
        finally:
            cluster.stop()

    return start
