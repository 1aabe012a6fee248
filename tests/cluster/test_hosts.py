"""One process on hosts of either family, and of both."""

import urllib.request

import pytest

from experts.address import Listen, bare, joined, listeners
from experts.errors import UserError
from router_svc.client import Client
from tests.patience import PATIENCE
from tests.server import one_process


@pytest.mark.parametrize("host", ["[::1]", "localhost"])
def test_grpc_and_http_answer_at_every_address(host: str) -> None:
    try:
        bound = listeners(Listen(bare(host), 0), "--http-port")
    except UserError as error:  # a container without IPv6
        pytest.skip(str(error))
    found = [sock.getsockname()[0] for sock in bound]
    for sock in bound:
        sock.close()
    with one_process(host=host) as server:
        ports = [int(at.rpartition(":")[2]) for at in (server.target, server.url)]
        assert host in server.target
        for address in found:
            with Client(joined(address, ports[0])) as client:
                assert client.model_info()["name"] == "demo"
            with urllib.request.urlopen(f"http://{joined(address, ports[1])}/health", timeout=PATIENCE) as answer:
                assert answer.status == 200
