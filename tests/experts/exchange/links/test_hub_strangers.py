"""Who calls a hub or has its name, and is nobody it should speak to: refused by name, or passed over."""

import contextlib
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from experts.epoch.membership import HERE, Member
from experts.errors import RankLost
from experts.exchange.links import hub as hub_module
from experts.exchange.links.circle import Sizes
from experts.exchange.links.hub import Hub
from tests.experts.exchange.links.hubs import Make, families, lost, maker, meet, member, members, silent_at, speak
from tests.experts.exchange.links.nets import begun, together
from tests.patience import PATIENCE, wait_until


@pytest.fixture
def make() -> Iterator[Make]:
    with maker() as made:
        yield made


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"secret": "other"}, "rank 1: the other end does not know this cluster's secret"),
    ({"sizes": Sizes(1024, 2, 2, 1, 2, 1024)}, r"rank 1: a hello for 'exchange' with sizes .*, expected"),
    ({"sizes": Sizes(1024, 2, 4, 1, 3, 1024)}, r"rank 1: a hello for 'exchange' with sizes .*, expected"),
    ({"rank": 2}, "rank 1: incarnation 0 of rank 2, expected 0 of 1"),
    ({"incarnation": 5}, "rank 1: incarnation 5 of rank 1, expected 0 of 1"),
]


@pytest.mark.parametrize(("wrong", "said"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_who_is_another_is_refused_by_name(make: Make, wrong: dict[str, Any], said: str) -> None:
    hub, other = make("plain", 0), make("plain", **({"rank": 1} | wrong))
    with pytest.raises(RankLost, match=said):
        hub.circle(members(1, hub, member(other, rank=1, incarnation=0)), PATIENCE, PATIENCE)
    assert families(hub) == []
    if "rank" not in wrong and "incarnation" not in wrong:
        assert families(other) == []


def test_silent_connections_keep_nobody_out(make: Make) -> None:
    hub, other = make("plain", 0), make("plain", 1)
    with ExitStack() as stack:
        for link in silent_at(other):
            stack.enter_context(link)
        speak(1, meet(1, hub, other))


class Recorder:
    """A port that passes one connection on to a hub, and keeps what its caller said."""

    def __init__(self, hub: Hub) -> None:
        self._listener = socket.create_server((HERE, 0))
        self.port = self._listener.getsockname()[1]
        self.said = bytearray()
        self._hub = hub
        self._ends: list[socket.socket] = []
        self._work = begun(self._run)

    def _run(self) -> None:
        caller, target = self._listener.accept()[0], socket.create_connection((HERE, self._hub.port))
        self._ends = [caller, target]
        back = begun(self._pass, target, caller, bytearray())
        self._pass(caller, target, self.said)
        back.result(PATIENCE)

    def _pass(self, source: socket.socket, target: socket.socket, kept: bytearray) -> None:
        while data := source.recv(1 << 16):
            kept += data
            target.sendall(data)

    def close(self) -> None:
        for end in self._ends:
            end.shutdown(socket.SHUT_RDWR)
        self._work.result(PATIENCE)
        for end in (*self._ends, self._listener):
            end.close()


def test_a_hello_that_was_heard_and_one_sent_back_open_nothing(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    hub, other = make("plain", 0), make("plain", 1)
    recorder = Recorder(other)
    who = members(1, hub, member(other, exchange_port=recorder.port))
    together(*(lambda one=one: one.circle(who, PATIENCE, PATIENCE) for one in (hub, other)))
    recorder.close()
    assert families(other) == [socket.AF_INET]
    message = recorder.said[: 4 + int.from_bytes(recorder.said[:4])]
    with socket.create_connection((HERE, other.port)) as replayed:
        replayed.sendall(recorder.said)
        drained(replayed)
    with socket.create_connection((HERE, other.port)) as reflected:
        reflected.sendall(message)
        reflected.sendall(reflected.recv(1 << 16)[-32:])
        drained(reflected)
    wait_until(lambda: caplog.text.count("does not know this cluster's secret") == 2, "both were refused")
    assert families(other) == [socket.AF_INET]


def drained(link: socket.socket) -> None:
    """Until the other end closes."""
    link.settimeout(PATIENCE)
    with contextlib.suppress(ConnectionResetError):
        while link.recv(1 << 16):
            pass


def test_ones_own_words_sent_back_are_no_answer(make: Make) -> None:
    hub = make("plain", 0)
    with socket.socket() as mirror, meddling(mirror, (HERE, 0), lambda link: link.sendall(link.recv(1 << 16))):
        port = mirror.getsockname()[1]
        assert lost(hub, members(1, hub, Member(1, "both", exchange_port=port)), 0.5).startswith("rank 1: ")
        assert families(hub) == []


@contextlib.contextmanager
def meddling(listener: socket.socket, where: Any, does: Callable[[socket.socket], object]) -> Iterator[None]:
    """Listens, and does something with each connection."""
    listener.bind(where)
    listener.listen(100)
    taken = []

    def accept() -> None:
        with contextlib.suppress(OSError):  # at the end
            while True:
                taken.append(listener.accept()[0])
                does(taken[-1])

    work = begun(accept)
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        for link in taken:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        work.result(PATIENCE)
        for link in taken:
            link.close()


NUMBERS = itertools.count()
STRANGERS: dict[str, Callable[[socket.socket], object]] = {
    "silent": lambda link: None,
    "closes": lambda link: link.close(),
    "babbles": lambda link: link.sendall(bytes(5000)),
    "echoes": lambda link: link.sendall(link.recv(1 << 16)),
}


@pytest.mark.parametrize("does", STRANGERS.values(), ids=STRANGERS)
def test_the_name_in_a_strangers_hands_leaves_tcp(
    make: Make, does: Callable[[socket.socket], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody on the machine may take a name before the rank does, or in another rank's place."""
    name = f"\0tokenyard-test/{os.getpid()}/{next(NUMBERS)}"
    monkeypatch.setattr(hub_module, "_near", lambda host, port: name)
    with socket.socket(socket.AF_UNIX) as stranger, meddling(stranger, name, does):
        hubs = make("plain", 0), make("plain", 1)
        speak(1, meet(1, *hubs))
        assert [families(hub) for hub in hubs] == [[socket.AF_INET]] * 2


def test_tcp_is_used_where_nobody_has_the_name(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As between machines, or network namespaces."""
    hubs = make("plain", 0), make("plain", 1)
    monkeypatch.setattr(hub_module, "_near", lambda host, port: "\0tokenyard-test/nobody")
    speak(1, meet(1, *hubs))
    assert [families(hub) for hub in hubs] == [[socket.AF_INET]] * 2
