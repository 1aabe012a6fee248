"""The store where members meet, over its real port."""

import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from torch.distributed import DistStoreError, PrefixStore

from experts.exchange.store import StoreClient, StoreServer
from tests.patience import PATIENCE


@pytest.fixture
def server() -> Iterator[StoreServer]:
    server = StoreServer("127.0.0.1")
    yield server
    server.close()


def client(server: StoreServer, timeout: float = 5.0) -> StoreClient:
    return StoreClient(server.host, server.port, timeout)


def test_clients_see_each_others_values(server: StoreServer) -> None:
    one, two = client(server), client(server)
    one.set("k", "text")
    assert two.get("k") == b"text"
    two.set("k", b"\x00\xff")
    assert one.get("k") == b"\x00\xff"
    assert one.check(["k"])
    assert not one.check(["k", "none"])
    assert [one.add("n", 2), two.add("n", 3)] == [2, 5]
    assert one.compare_set("new", "", "first") == b"first"
    assert two.compare_set("new", "", "second") == b"first"
    assert two.num_keys() == 3
    assert one.delete_key("k")
    assert not one.delete_key("k")


def test_get_waits_for_the_key_and_holds_up_no_clone(server: StoreServer) -> None:
    waiter = client(server)
    other = waiter.clone()
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(waiter.get("late")), daemon=True)
    thread.start()
    time.sleep(0.1)
    assert not got
    other.set("late", "now")
    thread.join(PATIENCE)
    assert got == [b"now"]


def test_a_wait_that_passes_is_an_error_that_names_the_key(server: StoreServer) -> None:
    waiter = client(server, timeout=0.1)
    with pytest.raises(DistStoreError, match="nobody set 'never'"):
        waiter.get("never")
    with pytest.raises(DistStoreError, match="nobody set 'never'"):
        waiter.wait(["never"], timedelta(seconds=0.05))
    waiter.set("k", "still usable")
    assert waiter.get("k") == b"still usable"


def test_torch_can_prefix_it(server: StoreServer) -> None:
    plain = client(server)
    PrefixStore("epoch3", plain).set("a", "1")
    assert plain.get("epoch3/a") == b"1"


def test_a_store_that_is_gone_is_an_error() -> None:
    server = StoreServer("127.0.0.1")
    port = server.port
    server.close()
    with pytest.raises(DistStoreError, match=f"no store at 127.0.0.1 port {port}"):
        StoreClient("127.0.0.1", port, 1.0)


def test_garbage_ends_only_its_own_connection(server: StoreServer) -> None:
    with socket.create_connection((server.host, server.port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert stranger.recv(10) == b""
    with socket.create_connection((server.host, server.port)) as stranger:
        stranger.sendall(b"\x00\x00\x00\x02\x91\xc0")
    good = client(server)
    with pytest.raises(DistStoreError):
        good._ask("no such operation")
    good.set("k", "v")
    assert good.get("k") == b"v"
