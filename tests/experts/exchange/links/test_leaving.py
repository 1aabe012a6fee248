"""What a member says as it ends an epoch is heard by all who wait for it or send to it, however full the connection is."""

import time

import pytest
import torch

from experts.exchange.links.circle import Circle, Trouble
from experts.exchange.links.frame import Outcome
from tests.experts.exchange.links.ends import FORM, Call, End, ends, rows_for, tables, unread
from tests.experts.exchange.links.nets import MIXES
from tests.patience import PATIENCE, wait_until

Forms = tuple[str, str]
pytestmark = pytest.mark.parametrize("forms", MIXES, ids="-".join)
BIG = 50_000  # rows, some 10 times what a socket's buffers hold


def some_ids(tokens: int = 1) -> torch.Tensor:
    return torch.zeros((tokens, FORM.top_k), dtype=torch.int16)


def both_say_ids(a: Circle, b: Circle) -> None:
    calls = [Call(lambda one=one: one.ids(0, some_ids())) for one in (a, b)]
    assert [call.ended() for call in calls] == [None, None]


@pytest.mark.parametrize("given_up", [0, 1, 2, 3, 7])
def test_leaving_is_heard_after_later_epochs_were_given_up(forms: Forms, given_up: int) -> None:
    a, b = ends(forms)
    theirs, mine = a.circle(1), b.circle(1)
    both_say_ids(theirs, mine)
    for epoch in range(2, 2 + given_up):
        a.circle(epoch).abort()
    theirs.abort()
    error = Call(lambda: mine.ids(1, some_ids())).ended()
    assert isinstance(error, Trouble)
    assert (error.outcome, error.member) == (Outcome.LEFT, 0)


def test_what_was_sent_before_leaving_arrives_and_nothing_more_is_waited_for(forms: Forms) -> None:
    """Of every size, since some leave no room for a word more in the connection."""
    outcomes = set()
    for tokens in range(1, 120):
        a, b = ends(forms, send_buffer=4096)
        theirs, mine = a.circle(1, patience=0), b.circle(1)
        if Call(lambda theirs=theirs, tokens=tokens: theirs.dispatch(0, rows_for(1, tokens), tables(), None)).ended():
            continue  # it does not fit at once
        theirs.abort()
        batch = mine.collect(0, None)
        assert batch.rows == (tokens, 0)
        assert torch.equal(batch.x, rows_for(1, tokens).x)
        error = Call(lambda mine=mine: mine.collect(1, None)).ended()
        assert isinstance(error, Trouble)
        outcomes.add(error.outcome)
        assert [usable(a), usable(b)] == [error.outcome == Outcome.LEFT] * 2
    assert outcomes == {Outcome.LEFT, Outcome.DEAD}


def usable(end: End) -> bool:
    """Whether a next epoch can use an end's only link."""
    (peer,) = (peer for peer in end.peers if peer is not None)
    return peer.usable(2)


def sending(a: End, b: End) -> Call:
    """More than fits, by `a` to `b`, which reads nothing."""
    circle = a.circle(1)
    call = Call(lambda: circle.dispatch(0, rows_for(b.member, BIG), tables(), None))
    wait_until(lambda: unread(b.sockets[a.member]) > 0, "rows on their way")
    return call


@pytest.mark.parametrize("used", [False, True])
def test_who_sends_to_a_member_that_leaves_hears_it(forms: Forms, used: bool) -> None:
    a, b = ends(forms)
    theirs = b.circle(1)
    if used:
        both_say_ids(a.circle(1), theirs)
    call = sending(a, b)
    theirs.abort()
    error = call.ended()
    assert isinstance(error, Trouble)
    assert (error.outcome, error.member) == (Outcome.LEFT, 1)


@pytest.mark.parametrize("broken", [False, True], ids=["left", "broken"])
def test_leaving_is_heard_behind_a_frame_that_nobody_asked_for_yet(forms: Forms, broken: bool) -> None:
    a, b = ends(forms)
    theirs = b.circle(1, patience=0)
    theirs.dispatch(0, rows_for(0, 3), tables(), None)
    if broken:
        with pytest.raises(Trouble):
            theirs.collect(0, rows_for(0, 3))
    call = sending(a, b)
    wait_until(lambda: unread(a.sockets[1]) == 0, "the frame read ahead")
    theirs.abort()
    error = call.ended()
    assert isinstance(error, Trouble)
    assert (error.outcome, error.member) == (Outcome.LEFT, 1)


@pytest.mark.parametrize("call", ["meet", "ids"])
def test_a_member_that_loses_another_keeps_its_link_to_a_third(forms: Forms, call: str) -> None:
    """Whichever it sends to first."""
    a, b, c = ends((*forms, "plain"))
    circle, other = a.circle(1), c.circle(1)
    b.sockets[0].close()
    with pytest.raises(Trouble):
        circle.meet([1, 2], [1, 2], 0) if call == "meet" else circle.ids(0, some_ids())
    circle.abort()
    error = Call(lambda: other.ids(0, some_ids())).ended()
    assert isinstance(error, Trouble)
    assert (error.outcome, error.member) == (Outcome.LEFT, 0)
    assert a.peers[2] is not None
    assert c.peers[0] is not None
    assert a.peers[2].usable(2)
    assert c.peers[0].usable(2)


def test_a_call_of_an_epoch_that_is_over_takes_nothing_from_the_next(forms: Forms) -> None:
    """The next epoch begins as soon as the one before is over, whose call has still to wake."""
    a, b = ends(forms)
    for epoch in range(1, 600, 2):
        until = time.monotonic_ns() + round(PATIENCE * 1e9)
        before, circle, other = a.circle(epoch, 1), a.circle(epoch + 1, 1), b.circle(epoch + 1, 1)
        late = Call(lambda before=before, until=until: before.meet([1], [1], until))
        theirs = Call(lambda other=other, until=until: other.meet([0], [0], until))
        before.abort()
        circle.meet([1], [1], until)
        assert isinstance(late.ended(), Trouble)
        assert theirs.ended() is None


def test_a_link_that_one_end_cannot_use_any_more_is_not_for_the_other(forms: Forms) -> None:
    """Else one would wait for the other's call, and that one for a word on the link."""
    a, b = ends(forms)
    b.sockets[0].send(b"no frame" * 8)
    assert not usable(a)
    assert not usable(b)
