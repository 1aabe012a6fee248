"""A circle in `idle` sleeps, and wakes for what it should: both forms."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from experts.exchange.links.frame import Kind
from tests.experts.exchange.links.nets import FORMS, begun, stranger
from tests.patience import PATIENCE, wait_until

both_forms = pytest.mark.parametrize("form", FORMS)


@both_forms
def test_an_idle_circle_sleeps_until_it_is_woken(form: str) -> None:
    with stranger(form) as other:
        assert not other.circle.idle(time.monotonic_ns() + 10_000_000)
        used: list[float] = []

        def sleep() -> bool:
            began = time.thread_time()
            news = other.circle.idle(None)
            used.append(time.thread_time() - began)
            return news

        sleeping = begun(sleep)
        time.sleep(1)
        assert not sleeping.done()
        other.circle.wake()
        assert sleeping.result(PATIENCE) is False
        assert used[0] < 0.2, "s of CPU in a second of sleep"
        other.circle.wake()  # before it sleeps
        assert other.circle.idle(None) is False
        until = time.monotonic_ns() + 20_000_000
        assert other.circle.idle(until) is False
        assert time.monotonic_ns() >= until, "it was woken once"


def _header(other: Any) -> None:
    other.send(Kind.HEADER, bytes(56), rows=1)


NEWS: dict[str, Callable[[Any], object]] = {
    "a header": _header,
    "the end of a connection": lambda other: other.link.close(),
    "abort of a peer": lambda other: other.send(Kind.ABORT),
    "leave of a peer": lambda other: other.send(Kind.LEAVE),
    "a later epoch": lambda other: other.send(Kind.MEET, epoch=2),
    "no frame": lambda other: other.link.sendall(bytes(64)),
    "abort here": lambda other: other.circle.abort(),
    "a death": lambda other: other.net.peers[0][1].died(),
}


@both_forms
@pytest.mark.parametrize("before", [True, False], ids=["before", "during"])
@pytest.mark.parametrize("news", NEWS.values(), ids=NEWS)
def test_an_idle_circle_wakes_for_news(form: str, news: Callable[[Any], object], before: bool) -> None:
    with stranger(form) as other:
        if before:
            news(other)
        sleeping = begun(other.circle.idle, None)
        if not before:
            wait_until(lambda: other.circle.missing() == (1,), "it sleeps")
            news(other)
        assert sleeping.result(PATIENCE) is True
        assert other.circle.idle(None) is True  # still


@both_forms
def test_an_idle_circle_is_not_woken_by_half_a_frame_or_one_of_an_earlier_epoch(form: str) -> None:
    with stranger(form) as other:
        circle = other.net.circle(0, epoch=3)
        sleeping = begun(circle.idle, None)
        other.send(Kind.ABORT, epoch=2)
        other.send(Kind.HEADER, bytes(56), epoch=2)
        frame = other.frame(Kind.HEADER, bytes(56), epoch=3)
        other.link.sendall(frame[:100])
        time.sleep(0.2)
        assert not sleeping.done()
        other.link.sendall(frame[100:])
        assert sleeping.result(PATIENCE) is True
