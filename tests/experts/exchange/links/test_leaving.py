"""What a member says as it ends an epoch is heard by all who wait for it or send to it, however full the connection is."""

import fcntl
import socket
import struct
import termios

import pytest
import torch

from experts.exchange.links.circle import Circle, Trouble
from experts.exchange.links.frame import Outcome
from tests.experts.exchange.links.ends import FORM, Call, ends

BIG = 50_000  # rows, some 10 times what a socket's buffers hold


def unread(connection: socket.socket) -> int:
    """Bytes that have come and were not read."""
    return int(struct.unpack("i", fcntl.ioctl(connection, termios.FIONREAD, b"\0" * 4))[0])


def some_ids(tokens: int = 1) -> torch.Tensor:
    return torch.zeros((tokens, FORM.top_k), dtype=torch.int16)


def both_say_ids(a: Circle, b: Circle) -> None:
    calls = [Call(lambda one=one: one.ids(0, some_ids())) for one in (a, b)]
    assert [call.ended() for call in calls] == [None, None]


@pytest.mark.parametrize("given_up", [0, 1, 2, 3, 7])
def test_leaving_is_heard_after_later_epochs_were_given_up(given_up: int) -> None:
    a, b = ends()
    theirs, mine = a.circle(1), b.circle(1)
    both_say_ids(theirs, mine)
    for epoch in range(2, 2 + given_up):
        a.circle(epoch).abort()
    theirs.abort()
    error = Call(lambda: mine.ids(1, some_ids())).ended()
    assert isinstance(error, Trouble)
    assert (error.outcome, error.member) == (Outcome.LEFT, 0)
