"""Which Ray is joined, without any: what is no address, and where nobody listens."""

import socket
from contextlib import closing

import pytest

from cluster.serve import ray_address
from cluster.serve.ray_address import RayAddress, announce, wanted
from experts.errors import UserError
from tests.ports import free_port


def test_the_flag_counts_before_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert wanted(None) is None
    assert wanted("local") is None
    assert wanted("auto") == RayAddress("auto", "--ray-address")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert wanted(None) == RayAddress("10.0.0.1:6379", "RAY_ADDRESS")
    assert wanted("local") is None
    assert wanted("[::1]:1") == RayAddress("[::1]:1", "--ray-address")
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert wanted(None) is None


@pytest.mark.parametrize("text", ["ray://127.0.0.1:10001", "127.0.0.1", ":6379", "host:port", "host:0", "host:65536"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="HOST:PORT") as caught:
        wanted(text)
    assert caught.value.where == "--ray-address"


def test_nobody_listens_is_said_at_once(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match="Connection refused") as caught:
        announce(None)
    assert caught.value.where == "RAY_ADDRESS"
    assert "joining the Ray at 127.0.0.1:" in capfd.readouterr().err


def test_a_port_that_somebody_listens_on_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        announce(f"127.0.0.1:{server.getsockname()[1]}")
    announce("local")
    assert capfd.readouterr().err.count("\n") == 1
    assert ray_address._KNOCK <= 5, "with Ray's own answer, 10 s in all are promised"
