"""One server for the tests of both faces."""

from collections.abc import Iterator

import pytest

from tests.server import RunningServer, one_process


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    with one_process(max_num_seqs=16) as running:
        yield running
