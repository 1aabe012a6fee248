"""What a stranger sends that is no frame, or none of this moment, is refused by name: no crash, no hang, nothing allocated."""

import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.epoch.membership import Member, Membership
from experts.exchange.links.circle import Circle, Rows, Trouble
from experts.exchange.links.frame import HEAD_BYTES, ROW, Frame, Kind, Outcome
from experts.exchange.routing import Tables
from experts.exchange.split import SplitPolicy
from experts.placement import Placement
from tests.experts.exchange.links.nets import FORMS, SIZES, Stranger, row, stranger, trouble_of

MOST, TOP_K, ROW_BYTES = 5, SIZES.top_k, SIZES.row_bytes
PLACEMENT = Placement.first(3, SIZES.experts, 2, SIZES.slots_per_rank)
TO_BOTH = Rows(  # members, every token
    torch.ones((MOST, SIZES.hidden)),
    torch.tensor([[0, SIZES.experts - 1]] * MOST, dtype=torch.int32),
    torch.ones((MOST, TOP_K)),
)
TABLES = Tables(PLACEMENT, Membership(0, (Member(0, "both"), Member(1, "both"))), SplitPolicy())
REFUSALS = (Outcome.MALFORMED, Outcome.ASTRAY, Outcome.DEAD, Outcome.LEFT)
pytestmark = pytest.mark.parametrize("form", FORMS)


def begin(circle: Circle) -> None:
    circle.step(7, 3, [MOST, MOST], None)


def meet(circle: Circle) -> Any:
    circle.meet([1], [1], 1 << 62)


def header(circle: Circle) -> Any:
    return circle.header(row(step=7), None)


def collect(circle: Circle) -> Any:
    begin(circle)
    return circle.collect(2, None)


def ids(circle: Circle) -> Any:
    begin(circle)
    return circle.ids(2, torch.zeros((1, TOP_K), dtype=torch.int16))


def sums(circle: Circle) -> Any:
    begin(circle)
    circle.dispatch(2, TO_BOTH, TABLES, None)
    return circle.sum(2, torch.zeros((MOST, SIZES.hidden)))


AT = {"step": 7, "layer": 2, "version": 3}
CALLS: dict[str, tuple[Callable[[Circle], Any], Kind]] = {
    "meet": (meet, Kind.MEET),
    "header": (header, Kind.HEADER),
    "collect": (collect, Kind.ROWS),
    "ids": (ids, Kind.IDS),
    "sums": (sums, Kind.SUMS),
}


def rows_body(*slots: int) -> bytes:
    """Of ROWS, one row for each slot."""
    table = np.full((len(slots), TOP_K), -1, dtype=np.int32)
    table[:, -1] = slots
    return table.tobytes() + bytes(len(slots) * (ROW_BYTES - 4 * TOP_K))


def ids_body(*last: int) -> bytes:
    table = np.full((len(last), TOP_K), -1, dtype=np.int16)
    table[:, -1] = last
    return table.tobytes()


def refused(
    outcome: Outcome, form: str, call: Callable[[Circle], Any], kind: int, body: bytes, **named: Any
) -> Trouble:
    """What a call says to a frame."""
    with stranger(form) as other:
        head = other.frame(kind, body, **named)
        other.link.sendall(head)
        trouble = trouble_of(call, other.circle)
        found = Frame.unpack(head[:HEAD_BYTES])
    assert (trouble.outcome, trouble.member, trouble.error) == (outcome, 1, 0)
    assert trouble.found == found
    return trouble


@pytest.mark.parametrize(("call", "kind"), CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    "wrong",
    [
        {"magic": 0x324B4C54}, {"sequence": 1}, {"sequence": (1 << 64) - 1}, {"incarnation": 12}, {"incarnation": 0},
        {"flags": 1}, {"kind": 0}, {"kind": 8}, {"kind": 255},
    ],
    ids=lambda wrong: "-".join(f"{name} {value:#x}" for name, value in wrong.items()),
)  # fmt: skip
def test_a_wrong_head_is_malformed(form: str, call: Callable[[Circle], Any], kind: Kind, wrong: dict[str, int]) -> None:
    body = bytes(ROW.size) if kind == Kind.HEADER else b""
    refused(Outcome.MALFORMED, form, call, **({"kind": kind, "body": body} | wrong))


@pytest.mark.parametrize("at", range(HEAD_BYTES - 16, HEAD_BYTES))
def test_bytes_that_nobody_uses_are_zero(form: str, at: int) -> None:
    with stranger(form) as other:
        head = bytearray(other.frame(Kind.MEET))
        head[at] = 1
        other.link.sendall(head)
        assert trouble_of(meet, other.circle).outcome == Outcome.MALFORMED


@pytest.mark.parametrize("size", [SIZES.most_bytes + 1, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 64, (1 << 64) - 1])
@pytest.mark.parametrize("kind", [Kind.ROWS, Kind.SUMS, Kind.IDS])
def test_a_body_above_the_limit_is_malformed_before_it_comes(form: str, kind: Kind, size: int) -> None:
    refused(Outcome.MALFORMED, form, collect, kind, b"", size=size, **AT)


@pytest.mark.parametrize(
    ("kind", "size"),
    [(Kind.HEADER, 0), (Kind.HEADER, 55), (Kind.HEADER, 57), (Kind.MEET, 1), (Kind.ABORT, 1), (Kind.LEAVE, 64)],
)
def test_a_body_of_another_size_than_its_kind_has_is_malformed(form: str, kind: Kind, size: int) -> None:
    refused(Outcome.MALFORMED, form, header, kind, bytes(size))


@pytest.mark.parametrize("rows", [0, 2, (1 << 16) + 1, (1 << 32) - 1])
def test_a_header_of_other_rows_than_its_size_has_or_of_too_many_is_malformed(form: str, rows: int) -> None:
    size = rows * ROW.size if rows > 2 else ROW.size
    refused(Outcome.MALFORMED, form, header, Kind.HEADER, b"", rows=rows, size=size)


@pytest.mark.parametrize(("leader", "rows"), [(None, 2), (0, 2), (1, 1), (1, 3)])
def test_a_header_of_other_rows_than_are_awaited_is_astray(form: str, leader: int | None, rows: int) -> None:
    def led(circle: Circle) -> Any:
        return circle.header(row(step=7), leader)

    refused(Outcome.ASTRAY, form, led, Kind.HEADER, bytes(rows * ROW.size))


@pytest.mark.parametrize("kind", list(Kind)[:5])
@pytest.mark.parametrize("call", CALLS)
def test_a_frame_of_another_kind_is_astray(form: str, call: str, kind: Kind) -> None:
    work, wanted = CALLS[call]
    if kind != wanted:
        refused(Outcome.ASTRAY, form, work, kind, bytes(ROW.size) if kind == Kind.HEADER else b"", **AT)


@pytest.mark.parametrize(
    "wrong", [{"step": 6}, {"step": 8}, {"layer": 1}, {"layer": 3}, {"version": 2}, {"version": 4}]
)
@pytest.mark.parametrize("call", ["collect", "ids", "sums"])
def test_a_frame_of_another_step_layer_or_version_is_astray(form: str, call: str, wrong: dict[str, int]) -> None:
    work, kind = CALLS[call]
    refused(Outcome.ASTRAY, form, work, kind, b"", **(AT | wrong))


@pytest.mark.parametrize(
    ("rows", "body"),
    [
        (0, rows_body(0)),
        (2, rows_body(0)),
        (1, rows_body(0) + b"\0"),
        (1, rows_body(0)[:-1]),
        (MOST + 1, rows_body(*[0] * (MOST + 1))),
        ((1 << 32) - 1, rows_body(0)),
        (1 << 31, b""),
        (1, rows_body(-2)),
        (1, rows_body(SIZES.slots_per_rank)),
        (2, rows_body(0, 1 << 30)),
        (2, rows_body(-(1 << 31), 0)),
    ],
)
def test_rows_that_do_not_fit_are_astray(form: str, rows: int, body: bytes) -> None:
    refused(Outcome.ASTRAY, form, collect, Kind.ROWS, body, rows=rows, **AT)


def test_a_member_with_less_than_no_tokens_takes_no_room_from_others(form: str) -> None:
    """What a step has room for is what its members' rows say."""
    with stranger(form) as other:
        other.send(Kind.ROWS, rows_body(*[0] * 40), rows=40, **AT)
        other.circle.step(7, 3, [-100, 40], None)
        batch = other.circle.collect(2, None)
    assert (batch.rows, tuple(batch.x.shape)) == ((0, 40), (40, SIZES.hidden))


@pytest.mark.parametrize(
    ("rows", "body"),
    [
        (0, ids_body(0)),
        (2, ids_body(0)),
        (MOST + 1, ids_body(*[0] * (MOST + 1))),
        ((1 << 32) - 1, ids_body(0)),
        (1 << 31, b""),
        (1, ids_body(-2)),
        (1, ids_body(SIZES.experts)),
        (3, ids_body(0, 0, 32767)),
    ],
)
def test_ids_that_do_not_fit_are_astray(form: str, rows: int, body: bytes) -> None:
    refused(Outcome.ASTRAY, form, ids, Kind.IDS, body, rows=rows, **AT)


@pytest.mark.parametrize(("rows", "size"), [(1, 0), (-1, 0), (0, 1), (0, -1), (1, SIZES.x_bytes), (-1, -SIZES.x_bytes)])
def test_sums_of_other_rows_than_were_sent_are_astray(form: str, rows: int, size: int) -> None:
    refused(Outcome.ASTRAY, form, sums, Kind.SUMS, bytes(MOST * SIZES.x_bytes + size), rows=MOST + rows, **AT)


@pytest.mark.parametrize("call", CALLS)
def test_what_is_as_it_should_be_is_taken(form: str, call: str) -> None:
    with stranger(form) as other:
        other.link.sendall(fitting(other, call))
        CALLS[call][0](other.circle)


def fitting(other: Stranger, call: str) -> bytes:
    """A frame that a call takes."""
    body = {
        "meet": b"",
        "header": ROW.pack(*row(step=7)),
        "collect": rows_body(0, -1, SIZES.slots_per_rank - 1),
        "ids": ids_body(-1, 0, SIZES.experts - 1),
        "sums": bytes(MOST * SIZES.x_bytes),
    }[call]
    rows = {"meet": 0, "header": 1, "collect": 3, "ids": 3, "sums": MOST}[call]
    return other.frame(CALLS[call][1], body, rows=rows, **AT)


@settings(max_examples=300, deadline=None)
@given(call=st.sampled_from(list(CALLS)), at=st.integers(0, 400), bit=st.integers(0, 7), cut=st.integers(0, 400))
def test_a_frame_with_a_wrong_bit_or_cut_short_is_taken_or_refused_and_no_more(
    form: str, call: str, at: int, bit: int, cut: int
) -> None:
    with stranger(form) as other:
        data = bytearray(fitting(other, call))
        data[at % len(data)] ^= 1 << bit
        other.link.sendall(data[: cut if cut % 2 else len(data)])
        other.link.shutdown(socket.SHUT_WR)
        end = ended(CALLS[call][0], other.circle)
        assert end is None or (end.member == 1 and end.outcome in REFUSALS), vars(end)


def ended(call: Callable[[Circle], Any], circle: Circle) -> Trouble | None:
    """How a call did not end well; None: it did."""
    try:
        call(circle)
    except Trouble as trouble:
        return trouble
    return None
