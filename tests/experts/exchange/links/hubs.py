"""Hubs of this process, for tests: who is where, which connections they got, and what they say of an epoch that fails."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from experts.epoch.membership import HERE, Member, Membership
from experts.errors import RankLost
from experts.exchange.links import hub as hub_module
from experts.exchange.links.circle import Circle, Lines, Peer, Sizes
from experts.exchange.links.hub import Hub
from tests.experts.exchange.links.nets import lines_of, row, together
from tests.patience import PATIENCE

SIZES = Sizes(hidden=1024, top_k=2, element=4, slots_per_rank=1, experts=2, budget=1024)
SECRET = "s"
Make = Callable[..., Hub]


class Seen:
    """Lines that remember the families of the connections that they got."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self.families: list[int] = []
        self.circle = lines.circle

    def peer(self, connection: socket.socket, incarnation: int, theirs: int, most_bytes: int) -> Peer:
        self.families.append(connection.family)
        return self._lines.peer(connection, incarnation, theirs, most_bytes)


def hub_of(form: str, rank: int, incarnation: int = 0, secret: str = SECRET, sizes: Sizes = SIZES) -> Hub:
    """The caller closes it."""
    return Hub(HERE, secret, rank, incarnation, sizes, Seen(lines_of(form)))


@contextlib.contextmanager
def maker() -> Iterator[Make]:
    """Makes hubs as `hub_of` does, which are closed at the end."""
    with ExitStack() as stack:

        def made(*args: Any, **named: Any) -> Hub:
            hub = hub_of(*args, **named)
            stack.callback(hub.close)
            return hub

        yield made


def families(hub: Hub) -> list[int]:
    """Of the connections of a hub's links, in the order in which they were made."""
    assert isinstance(hub._lines, Seen)
    return hub._lines.families


def member(hub: Hub, **named: Any) -> Member:
    own = hub._own
    return Member(
        **({"rank": own.rank, "role": "both", "incarnation": own.incarnation, "exchange_port": hub.port} | named)
    )


def members(epoch: int, *seats: Hub | Member) -> Membership:
    return Membership(epoch, tuple(seat if isinstance(seat, Member) else member(seat) for seat in seats))


def meet(epoch: int, *hubs: Hub, patience: float = PATIENCE) -> list[Circle]:
    """All hubs' circles."""
    who = members(epoch, *hubs)
    return together(*(lambda hub=hub: hub.circle(who, PATIENCE, patience) for hub in hubs))


def speak(epoch: int, circles: list[Circle]) -> None:
    """A header."""
    rows = [row(epoch, decode=m) for m in range(len(circles))]
    got = together(*(lambda m=m: circles[m].header(rows[m], None) for m in range(len(circles))))
    assert got == [rows] * len(circles)


def lost(hub: Hub, who: Membership, seconds: float = PATIENCE) -> str:
    """Why an epoch can't be met for."""
    with pytest.raises(RankLost) as raised:
        hub.circle(who, seconds, PATIENCE)
    assert raised.value.epoch == who.epoch
    return raised.value.detail


def silent_at(hub: Hub) -> Iterator[socket.socket]:
    """Connections to each of its listeners in turn, which say nothing."""
    for number in range(20):
        near = number % 2
        link = socket.socket(socket.AF_UNIX if near else socket.AF_INET)
        link.connect(hub_module._near(HERE, hub.port) if near else (HERE, hub.port))
        yield link
