"""How calls of circles end: both forms, and pairs that mix them. Who is named, what a peer notices, and that nobody hangs."""

import contextlib
import errno
import random
import socket
import threading
import time
from collections.abc import Callable

import pytest
import torch

from experts.epoch.membership import Member, Membership
from experts.exchange.links.circle import Circle, Rows, Sizes, Trouble
from experts.exchange.links.frame import Kind, Outcome
from experts.exchange.routing import Tables
from experts.exchange.split import SplitPolicy
from experts.placement import Placement
from tests.experts.exchange.links.nets import (
    FORMS,
    MIXES,
    begun,
    net_of,
    row,
    stranger,
    together,
    trouble_of,
)
from tests.patience import PATIENCE, wait_until

LARGE = Sizes(hidden=1024, top_k=2, element=4, slots_per_rank=1, experts=2, budget=1024)
BUFFER = 64 << 10
BLOCK = 160  # tokens of LARGE: 10 x the buffer
TABLES = Tables(Placement.first(1, 2, 2, 1), Membership(0, (Member(0, "both"), Member(1, "both"))), SplitPolicy())
both_forms = pytest.mark.parametrize("form", FORMS)
all_mixes = pytest.mark.parametrize("forms", MIXES, ids="-".join)
three = pytest.mark.parametrize("forms", [(*mix, "plain") for mix in MIXES] + [("native",) * 3], ids="-".join)


def block(seed: int = 0, expert: int = 1) -> Rows:
    """Tokens that all go to one expert, that of the rank with its number."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((BLOCK, LARGE.top_k), -1, dtype=torch.int32)
    ids[:, 0] = expert
    return Rows(torch.randn(BLOCK, LARGE.hidden, generator=generator), ids, torch.ones(BLOCK, LARGE.top_k))


def begin(circle: Circle, room: tuple[int, ...] = (BLOCK, BLOCK)) -> None:
    circle.step(0, 0, room, 0)


def send(circle: Circle, rows: Rows) -> None:
    begin(circle)
    circle.dispatch(0, rows, TABLES, None)


def waits(circle: Circle) -> Callable[[], bool]:
    return lambda: bool(circle.missing())


@all_mixes
def test_both_send_ten_times_the_buffer_at_once(forms: tuple[str, str]) -> None:
    with net_of(forms, LARGE, buffer=BUFFER) as net:
        circles = net.circles()

        def layer(me: int) -> tuple[torch.Tensor, torch.Tensor]:
            send(circles[me], block(me, 1 - me))
            x = circles[me].collect(0, block(me, 1 - me)).x.clone()
            circles[me].give_back(0, x)
            return x, circles[me].sum(0, x[:0])

        for me, (arrived, sums) in enumerate(together(lambda: layer(0), lambda: layer(1))):
            assert torch.equal(arrived, block(1 - me).x)
            assert torch.equal(sums, block(me).x)


@all_mixes
def test_abort_with_full_buffers_ends_the_call_and_the_peers_next_one(forms: tuple[str, str]) -> None:
    with net_of(forms, LARGE, buffer=BUFFER) as net:
        sender, other = net.circles()
        sending = begun(lambda: trouble_of(send, sender, block()))
        time.sleep(0.1)
        assert not sending.done(), "nobody reads"
        sender.abort()
        ended = sending.result(PATIENCE)
        assert (ended.outcome, ended.member) == (Outcome.OVER, -1)
        begin(other)
        lost = trouble_of(other.collect, 0, None)  # reads half a frame
        assert (lost.outcome, lost.member, lost.error) == (Outcome.DEAD, 0, -1)


@both_forms
def test_abort_with_nobody_reading_shuts_the_connection_down(form: str) -> None:
    with stranger(form, LARGE) as other:
        sending = begun(lambda: trouble_of(send, other.circle, block()))
        time.sleep(0.1)
        assert not sending.done()
        other.circle.abort()
        assert sending.result(PATIENCE).outcome == Outcome.OVER
        read = 0
        while data := other.link.recv(1 << 20):  # the end comes in the middle of the frame
            read += len(data)
        assert read < BLOCK * LARGE.row_bytes
        assert not other.net.peers[0][1].usable(2)  # type: ignore[union-attr]


@all_mixes
def test_abort_of_a_call_that_waits_says_so_to_the_peer_and_the_link_stays(forms: tuple[str, str]) -> None:
    with net_of(forms) as net:
        here, there = net.circles()
        here.step(0, 0, (1, 1), 0)
        waiting = begun(lambda: trouble_of(here.collect, 0, None))
        wait_until(waits(here), "it waits")
        here.abort()
        assert waiting.result(PATIENCE).outcome == Outcome.OVER
        lost = trouble_of(there.header, row(), None)
        assert (lost.outcome, lost.member, lost.error, lost.found) == (Outcome.LEFT, 0, 0, None)
        there.abort()
        assert trouble_of(there.header, row(), None).outcome == Outcome.OVER  # calls to come, too
        circles = net.circles(2)
        rows = [row(2, 7, decode=m) for m in range(2)]
        assert together(*(lambda m=m: circles[m].header(rows[m], None) for m in range(2))) == [rows, rows]


@all_mixes
def test_abort_reaches_a_peer_that_waits_for_somebody_else(forms: tuple[str, str]) -> None:
    with net_of((*forms, "plain")) as net:
        one, two, _ = net.circles()
        for circle in (one, two):
            circle.step(0, 0, (0, 0, 1), 0)
        waiting = [begun(lambda circle=circle: trouble_of(circle.collect, 0, None)) for circle in (one, two)]
        wait_until(lambda: one.missing() == two.missing() == (2,), "both wait for the third only")
        one.abort()
        assert waiting[0].result(PATIENCE).outcome == Outcome.OVER
        lost = waiting[1].result(PATIENCE)
        assert (lost.outcome, lost.member) == (Outcome.LEFT, 0)


@all_mixes
def test_abort_is_heard_behind_a_frame_that_nobody_has_taken(forms: tuple[str, str]) -> None:
    with net_of((*forms, "plain")) as net:
        one, two, _ = net.circles()
        waiting = [begun(lambda circle=circle: trouble_of(circle.header, row(), None)) for circle in (one, two)]
        wait_until(lambda: one.missing() == two.missing() == (2,), "both wait for the third only")
        one.abort()
        lost = waiting[1].result(PATIENCE)
        assert (lost.outcome, lost.member) == (Outcome.LEFT, 0)


@three
def test_leave_of_a_member_that_nobody_waits_for_disturbs_nobody(forms: tuple[str, str, str]) -> None:
    with net_of(forms) as net:
        circles = net.circles()
        rows = [row(decode=m) for m in range(3)]
        together(*(lambda m=m: circles[m].header(rows[m], None) for m in range(3)))
        circles[2].abort()  # its calls all ended well: it leaves
        for circle in circles[:2]:
            assert circle.idle(None)  # it is news to all
            circle.step(1, 0, (3, 3, 0), 0)
        ids = torch.zeros((3, 2), dtype=torch.int16)
        found = together(*(lambda m=m: circles[m].ids(0, ids) for m in range(2)))
        assert [list(everyone) for everyone in found] == [[0, 1]] * 2
        lost = trouble_of(circles[0].header, row(), None)  # which waits for it
        assert (lost.outcome, lost.member) == (Outcome.LEFT, 2)


@both_forms
def test_a_deadline_that_passes_is_late_and_names_who_is_missing(form: str) -> None:
    with stranger(form, patience=0.2) as other:
        began = time.monotonic()
        late = trouble_of(other.circle.header, row(), None)
        assert time.monotonic() - began >= 0.2
        assert (late.outcome, late.member, late.error, late.found) == (Outcome.LATE, 1, 0, None)
        assert other.circle.missing() == ()
        late = trouble_of(other.circle.meet, [1], [1], time.monotonic_ns() - 1)
        assert late.outcome == Outcome.LATE


@both_forms
def test_a_peer_that_does_not_read_is_late_too(form: str) -> None:
    with stranger(form, LARGE, patience=0.2) as other:
        late = trouble_of(send, other.circle, block())
        assert (late.outcome, late.member) == (Outcome.LATE, 1)


@both_forms
@pytest.mark.parametrize("sent", [0, 1, 63, 64, 100], ids=lambda sent: f"{sent} bytes")
def test_a_connection_that_ends_is_dead_wherever_it_ends(form: str, sent: int) -> None:
    with stranger(form) as other:
        other.link.sendall(other.frame(Kind.HEADER, bytes(56), rows=1)[:sent])
        other.link.shutdown(socket.SHUT_WR)
        dead = trouble_of(other.circle.header, row(), None)
        assert (dead.outcome, dead.member, dead.error, dead.found) == (Outcome.DEAD, 1, -1, None)


@both_forms
def test_a_connection_that_is_cut_while_it_is_waited_for_is_dead(form: str) -> None:
    with stranger(form) as other:
        waiting = begun(lambda: trouble_of(other.circle.header, row(), None))
        wait_until(waits(other.circle), "it waits")
        assert other.circle.missing() == (1,)
        other.link.close()
        dead = waiting.result(PATIENCE)
        assert (dead.outcome, dead.member) == (Outcome.DEAD, 1)
        assert dead.error in (-1, errno.ECONNRESET)  # what was sent had not been read


@both_forms
def test_what_a_dead_process_said_counts_and_nothing_more_is_waited_for(form: str) -> None:
    with stranger(form) as other:
        peer = other.net.peers[0][1]
        assert peer is not None
        other.circle.step(0, 0, (0, 1), 0)
        other.send(Kind.ROWS)
        peer.died()
        assert other.circle.collect(0, None).rows == (0, 0)
        dead = trouble_of(other.circle.header, row(), None)
        assert (dead.outcome, dead.member, dead.error) == (Outcome.DEAD, 1, errno.EOWNERDEAD)
        assert not peer.usable(2)


@both_forms
def test_what_has_come_whole_before_the_end_is_taken(form: str) -> None:
    with stranger(form) as other:
        other.send(Kind.HEADER, bytes(56), rows=1)
        other.link.shutdown(socket.SHUT_WR)
        assert other.circle.header(row(), None)[1] == (0,) * 7
        assert trouble_of(other.circle.header, row(), None).outcome == Outcome.DEAD


@both_forms
def test_frames_of_earlier_epochs_are_dropped_and_their_ends_are_nothing(form: str) -> None:
    with stranger(form) as other:
        circle = other.net.circle(0, epoch=5)
        for kind, size in ((Kind.MEET, 0), (Kind.ROWS, 300), (Kind.ABORT, 0), (Kind.LEAVE, 0), (Kind.HEADER, 56)):
            other.send(kind, bytes(size), epoch=4)
        other.send(Kind.ABORT, epoch=9)  # of no epoch that is known here
        other.send(Kind.HEADER, bytes(56), epoch=5)
        assert circle.header(row(5), None)[1] == (0,) * 7


@both_forms
@pytest.mark.parametrize("kind", [Kind.ABORT, Kind.LEAVE])
def test_the_last_ends_are_kept_in_mind(form: str, kind: Kind) -> None:
    with stranger(form) as other:
        for epoch in (5, 9, 8, 7, 6, 4, 3, 2, 1):
            other.send(kind, epoch=epoch)
        other.send(Kind.MEET, epoch=20)  # comes last
        ends = {}
        for epoch in (1, 2, 9):
            ends[epoch] = trouble_of(other.net.circle(0, epoch).header, row(epoch), None).outcome
        assert ends == {1: Outcome.LEFT, 2: Outcome.LEFT, 9: Outcome.LEFT}


@all_mixes
def test_a_frame_of_a_later_epoch_is_kept_aside_and_its_sender_has_left_this_one(forms: tuple[str, str]) -> None:
    with net_of(forms) as net:
        here, ahead = net.circle(0, 1), net.circle(1, 2)
        opening = begun(ahead.header, row(2, 0, decode=9), None)
        assert here.idle(None)
        lost = trouble_of(here.header, row(1), None)
        assert (lost.outcome, lost.member) == (Outcome.LEFT, 1)
        here.abort()
        found = [row(2, 0, decode=8), row(2, 0, decode=9)]
        assert net.circle(0, 2).header(found[0], None) == found
        assert opening.result(PATIENCE) == found


@both_forms
def test_at_most_one_frame_is_read_ahead(form: str) -> None:
    with stranger(form, LARGE) as other:
        other.link.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(1000):
                other.circle.idle(0)
                other.send(Kind.ROWS, bytes(4096), epoch=2)
        assert other.sent < 500  # frames: what the sockets take


@all_mixes
def test_members_that_meet_wait_for_all_and_only_new_ones_are_told(forms: tuple[str, str]) -> None:
    with net_of(forms) as net:
        here, there = net.circles()
        late = trouble_of(here.meet, [1], [1], time.monotonic_ns() + 10_000_000)
        assert (late.outcome, late.member) == (Outcome.LATE, 1)
        until = time.monotonic_ns() + round(PATIENCE * 1e9)
        together(lambda: here.meet([1], [], until), lambda: there.meet([0], [0], until))
        rows = [row(decode=m) for m in range(2)]
        assert together(lambda: here.header(rows[0], None), lambda: there.header(rows[1], None)) == [rows, rows]


@all_mixes
def test_calls_of_two_circles_of_one_worker_do_not_wait_for_each_other(forms: tuple[str, str]) -> None:
    """As when the next epoch's newcomers are met beside running steps."""
    with net_of((*forms, "plain")) as net:
        near, far, new = net.peers[0][1], net.peers[1][0], net.peers[0][2]
        meeting = net.lines[0].circle(2, [None, None, new], 0, net.ranks, net.sizes, PATIENCE)
        waiting = begun(lambda: trouble_of(meeting.meet, [2], [2], 1 << 62))
        wait_until(waits(meeting), "it waits")
        here = net.lines[0].circle(1, [None, near], 0, [0, 1], net.sizes, PATIENCE)
        there = net.lines[1].circle(1, [far, None], 1, [0, 1], net.sizes, PATIENCE)
        rows = [row(decode=m) for m in range(2)]
        assert together(lambda: here.header(rows[0], None), lambda: there.header(rows[1], None)) == [rows, rows]
        assert not waiting.done()
        meeting.abort()
        assert waiting.result(PATIENCE).outcome == Outcome.OVER


@all_mixes
def test_wake_disturbs_no_call_and_abort_ends_them_from_any_thread(forms: tuple[str, str]) -> None:
    with net_of(forms) as net:
        circles = net.circles()
        headers, over = [0, 0], threading.Event()

        def step(me: int) -> Trouble:
            try:
                while True:
                    circles[me].header(row(decode=me), None)
                    headers[me] += 1
            except Trouble as trouble:
                return trouble

        def ring() -> None:
            while not over.is_set():
                for circle in circles:
                    circle.wake()
                    circle.missing()

        working = [begun(step, 0), begun(step, 1), begun(ring)]
        wait_until(lambda: min(headers) > 200 or any(work.done() for work in working), "some headers")
        circles[0].abort()
        ended, lost = (work.result(PATIENCE) for work in working[:2])
        over.set()
        working[2].result(PATIENCE)
        assert (ended.outcome, ended.member) == (Outcome.OVER, -1)
        assert (lost.outcome, lost.member) == (Outcome.LEFT, 0)


@both_forms
def test_an_aborted_circle_takes_nothing_that_a_later_one_waits_for(form: str) -> None:
    """Both sleep on the same connection for a moment; whoever reads it is the only one whose poll sees it."""
    with stranger(form) as other:
        for epoch in range(1, 600, 2):
            early, later = other.net.circle(0, epoch), other.net.circle(0, epoch + 1)
            waiting, go = begun(trouble_of, early.meet, [1], [], 1 << 62), threading.Event()
            wait_until(waits(early), "it waits")

            def say(epoch: int = epoch, go: threading.Event = go) -> None:
                go.wait()
                time.sleep(0.0003 * random.random())
                other.send(Kind.MEET, epoch=epoch + 1)

            saying = begun(say)
            go.set()
            early.abort()
            later.meet([1], [], time.monotonic_ns() + 5_000_000_000)
            saying.result(PATIENCE)
            assert waiting.result(PATIENCE).outcome in (Outcome.OVER, Outcome.LEFT)
            other.link.recv(1 << 16)
