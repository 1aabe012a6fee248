"""Hosts and ports: every family alike, and an error that says what is wrong."""

import errno
import os
import socket
from pathlib import Path

import pytest

from experts.address import Listen, addresses, bare, check_port, free_port, joined, listeners, one_address
from experts.errors import UserError


def needs(host: str) -> None:
    try:
        socket.create_server((host, 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here ({error})")


def test_brackets_stand_around_addresses_with_colons_only() -> None:
    assert [joined(host, 5) for host in ("127.0.0.1", "::1", "node")] == ["127.0.0.1:5", "[::1]:5", "node:5"]
    assert [bare(host) for host in ("[::1]", "::1", "node")] == ["::1", "::1", "node"]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", "::1", "::"])
def test_a_host_is_listened_on_at_all_its_addresses(host: str) -> None:
    if ":" in host:
        needs(host)
    bound = listeners(Listen(host, 0), "--http-port")
    try:
        assert {sock.getsockname()[0] for sock in bound} <= set(addresses(host))
        port = bound[0].getsockname()[1]
        assert {sock.getsockname()[1] for sock in bound} == {port}
        for sock in bound:
            sock.listen()
            with socket.create_connection((sock.getsockname()[0], port)):
                pass
    finally:
        for sock in bound:
            sock.close()


def test_all_addresses_of_this_machine_are_taken_by_both_families() -> None:
    needs("::")
    (bound,) = listeners(Listen("::", 0), "--http-port")
    with bound:
        bound.listen()
        socket.create_connection(("127.0.0.1", bound.getsockname()[1])).close()


def test_a_server_of_one_address_gets_one() -> None:
    assert [one_address(host) for host in ("127.0.0.1", "::1", "::", "0.0.0.0")] == [
        "127.0.0.1",
        "::1",
        "::",
        "0.0.0.0",
    ]
    assert one_address("localhost") == "127.0.0.1"


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--grpc-port on 127\.0\.0\.1: found port {port} in use"):
            check_port(Listen("127.0.0.1", port), "--grpc-port")
    check_port(Listen("127.0.0.1", free_port("127.0.0.1")), "--grpc-port")


def test_a_free_port_is_none_that_the_system_gives_meanwhile() -> None:
    first, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert free_port("127.0.0.1") < first
    with pytest.raises(UserError, match="which is not here"):
        free_port("192.0.2.7")


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::7"])
def test_an_address_of_another_machine_is_no_port_in_use(host: str) -> None:
    with pytest.raises(UserError, match="which is not here, expected an address of this machine"):
        check_port(Listen(host, 0), "--grpc-port")


@pytest.mark.parametrize("host", ["no such host", "", "999.1.1.1", "a\0b"])
def test_a_host_that_is_none(host: str) -> None:
    with pytest.raises(UserError, match="--host: found host"):
        check_port(Listen(host, 0), "--grpc-port")


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EACCES, "may not open, expected a port above 1023"), (errno.EMFILE, os.strerror(errno.EMFILE))],
)
def test_the_reason_is_told(monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    def refuse(self: socket.socket, address: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket.socket, "bind", refuse)  # a user without rights can't be had in a container
    with pytest.raises(UserError, match=words):
        check_port(Listen("127.0.0.1", 80), "--http-port")
