"""What circles of both forms say to each other in random histories of epochs arrives whole, in order, and once."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experts.epoch.agreement import Row
from experts.epoch.membership import Member, Membership
from experts.exchange.links.circle import Circle, Rows, Sizes
from experts.exchange.routing import Routing, Tables
from experts.exchange.split import SplitPolicy
from experts.exchange.wire import ExpertBatch
from experts.placement import EMPTY, Placement
from tests.experts.exchange.links.nets import FORMS, has_native, net_of, row, some_rows, together

EXPERTS = 6
FORMS_HERE = FORMS if has_native() else ("plain",)
RANKS = ([0, 1], [0, -1], [0, 1, 2], [0, 1, -1], [-1, 1, 2], [-1, 1, -1])  # of members, -1 = no experts


@dataclass(frozen=True)
class Act:
    """What all members do next.

    tokens: of each member; a source may bring fewer than it has room for
    room: of each member
    kind: header, layer, together (a layer whose split knows all ids) or unread (rows that nobody takes)
    """

    kind: str
    step: int
    tokens: tuple[int, ...]
    room: tuple[int, ...]
    whole: bool
    asks: bool  # members without experts use `ask`
    leader: int | None  # of a header
    seed: int

    def rows(self, member: int, sizes: Sizes) -> Rows:
        return some_rows(self.tokens[member], sizes, 100 * self.seed + member)


@dataclass(frozen=True)
class History:
    """epochs: what is done in each
    late: an epoch is left after the first header of the next
    buffer: of a socket; a small one only where nothing is left unread in it as an epoch is left, since the word that says so
        has to fit, or ends the connection
    """

    ranks: list[int]
    forms: list[str]
    sizes: Sizes
    epochs: list[list[Act]]
    late: bool
    buffer: int = 0

    @property
    def tables(self) -> Tables:
        holders, width = [rank for rank in self.ranks if rank >= 0], self.sizes.slots_per_rank
        packed = Placement.first(1, EXPERTS, len(holders), width).slot_expert.reshape(len(holders), width)
        table = np.full((len(self.ranks), width), EMPTY)
        table[holders] = packed
        seats = tuple(Member(at, "both" if rank >= 0 else "attention") for at, rank in enumerate(self.ranks))
        placement = Placement(0, len(seats), width, table.reshape(1, -1))
        return Tables(placement, Membership(0, seats), SplitPolicy())


@st.composite
def acts(draw: st.DrawFn, members: int, step: int, kinds: tuple[str, ...]) -> Act:
    tokens = draw(st.lists(st.sampled_from([0, 0, 1, 2, 7, 40]), min_size=members, max_size=members))
    spare = draw(st.integers(0, 2))
    room = [count + spare for count in tokens]
    if not any(room):
        room = [1] * members
    return Act(
        draw(st.sampled_from(kinds)), step, tuple(tokens), tuple(room), draw(st.booleans()), draw(st.booleans()),
        draw(st.sampled_from([None, *range(members)])), step,
    )  # fmt: skip


@st.composite
def histories(draw: st.DrawFn) -> History:
    ranks = draw(st.sampled_from(RANKS))
    forms = draw(st.lists(st.sampled_from(FORMS_HERE), min_size=len(ranks), max_size=len(ranks)))
    slots = -(-EXPERTS // sum(1 for rank in ranks if rank >= 0)) + draw(st.integers(0, 2))
    # Three parts of a sum are the fewest whose order shows in its bits.
    sizes = Sizes(draw(st.sampled_from([1, 5, 300])), 3, draw(st.sampled_from([2, 4])), slots, EXPERTS, 256)
    epochs, step, small = [], 0, draw(st.booleans())
    for _ in range(draw(st.integers(1, 3))):
        todo = []
        for _ in range(draw(st.integers(0, 3))):
            step += 1
            todo.append(draw(acts(len(ranks), step, ("header", "layer", "together"))))
        if not small and draw(st.booleans()):
            step += 1
            todo.append(draw(acts(len(ranks), step, ("unread",))))
        epochs.append(todo)
    return History(ranks, forms, sizes, epochs, small or draw(st.booleans()), 4096 if small else 0)


def compute(rank: int, x: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Any function of row, slot, weight and rank."""
    scale = torch.where(slots >= 0, (slots + 10 * rank + 1) * weights, 0.0).sum(1, keepdim=True)
    return x.float() * scale


def routing_of(history: History, act: Act, member: int) -> Routing:
    tables = history.tables
    if act.kind == "together":
        return tables.route_all(0, ids_of(history, act), member)[0]
    ids = act.rows(member, history.sizes).ids.to(torch.int16)
    return tables.route_one(0, ids, member, act.whole)


def ids_of(history: History, act: Act) -> dict[int, torch.Tensor]:
    sources = [member for member, room in enumerate(act.room) if room]
    return {member: act.rows(member, history.sizes).ids.to(torch.int16) for member in sources}


def arriving(history: History, act: Act, source: int, holder: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of a source that go to a member: x, slots, weights."""
    routing, rows = routing_of(history, act, source), act.rows(source, history.sizes)
    tokens = torch.from_numpy(routing.rows[holder])
    return rows.x[tokens], torch.from_numpy(routing.local_slots(holder)), rows.weights[tokens]


def expected(history: History, act: Act, member: int) -> Any:
    """What a member gets, stated plainly."""
    if act.kind == "header":
        return [row_of(act, at) for at in range(len(history.ranks))]
    sources = [at for at, room in enumerate(act.room) if room]
    batch, sums = None, None
    if history.ranks[member] >= 0:
        parts = [arriving(history, act, source, member) for source in sources]
        counts = tuple(len(parts[sources.index(at)][0]) if at in sources else 0 for at in range(len(history.ranks)))
        batch = (counts, *(torch.cat(columns) for columns in zip(*parts, strict=True)))
    if member in sources:
        rows, sizes = routing_of(history, act, member).rows, history.sizes
        sums = torch.zeros(act.tokens[member], sizes.hidden)
        for holder, rank in enumerate(history.ranks):
            if rank >= 0:
                part = compute(rank, *arriving(history, act, member, holder))
                part = part if holder == member else part.to(sizes.dtype).float()
                sums.index_add_(0, torch.from_numpy(rows[holder]), part)
    return batch, sums


def row_of(act: Act, member: int) -> Row:
    return row(step=act.step, decode=1000 * act.seed + member)


def take_part(history: History, circle: Circle, act: Act, member: int) -> Any:
    """A member's calls of an act, and what they give."""
    if act.kind == "header":
        return circle.header(row_of(act, member), act.leader)
    source, rank = bool(act.room[member]), history.ranks[member]
    circle.step(act.step, 3, act.room, None if act.whole else member)
    rows, tables, slots = act.rows(member, history.sizes), history.tables, None
    if act.kind == "together" and source:
        everyone = circle.ids(0, rows.ids.to(torch.int16))
        assert list(everyone) == list(ids_of(history, act))
        assert all(torch.equal(everyone[at], ids) for at, ids in ids_of(history, act).items())
        slots = torch.from_numpy(tables.route_all(0, everyone, member)[0].slots)
    if act.asks and rank < 0 and source and act.kind != "unread":
        return None, circle.ask(0, rows, tables, slots)
    if source:
        circle.dispatch(0, rows, tables, slots)
    if act.kind == "unread":
        return None
    batch, own = None, None
    if rank >= 0:
        found = circle.collect(0, rows if source else None)
        batch, own = copied(found), answer(circle, found, rank, member)
    return batch, circle.sum(0, own if source else None) if source else None


def copied(batch: ExpertBatch) -> tuple[Any, ...]:
    return batch.rows, batch.x.clone(), batch.slots.clone(), batch.weights.clone()


def answer(circle: Circle, batch: ExpertBatch, rank: int, member: int) -> torch.Tensor:
    """Send sums back; this member's own."""
    y = compute(rank, batch.x, batch.slots, batch.weights)
    circle.give_back(0, y)
    before = sum(batch.rows[:member])
    return y[before : before + batch.rows[member]]


def live(history: History, member: int, circles: list[Circle]) -> list[Any]:
    """A member goes through all epochs at its own pace."""
    got, last = [], None
    for number, (circle, todo) in enumerate(zip(circles, history.epochs, strict=True)):
        first = first_of(number)
        got.append(take_part(history, circle, first, member))
        if last is not None and history.late:
            last.abort()
        got += [take_part(history, circle, act, member) for act in todo]
        last = circle
        if not history.late:
            circle.abort()
    return got


def first_of(number: int) -> Act:
    """What an epoch begins with."""
    return Act("header", number, (), (), False, False, None, number)


def same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, torch.Tensor):
        return torch.equal(found, wanted)
    if isinstance(wanted, tuple) and not isinstance(wanted, Row):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return bool(found == wanted)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=histories(), pieces=st.booleans(), seed=st.integers(0, 1000))
def test_what_is_said_arrives_whole_in_order_and_once(history: History, pieces: bool, seed: int) -> None:
    wire = random.Random(seed) if pieces else None
    with net_of(history.forms, history.sizes, history.ranks, pieces=wire, buffer=history.buffer) as net:
        circles = [net.circles(epoch) for epoch in range(1, len(history.epochs) + 1)]
        members = range(net.size)
        found = together(*(lambda m=m: live(history, m, [of[m] for of in circles]) for m in members))
    for member, got in enumerate(found):
        acts = [act for number, todo in enumerate(history.epochs) for act in (first_of(number), *todo)]
        for act, result in zip(acts, got, strict=True):
            wanted = None if act.kind == "unread" else expected(history, act, member)
            assert same(result, wanted), (member, act, result, wanted)


def test_both_forms_count_the_same_bytes() -> None:
    if not has_native():
        return
    layer = Act("layer", 1, (5, 3), (5, 4), False, False, None, 1)
    history = History([0, 1], ["native", "plain"], Sizes(5, 2, 2, 3, EXPERTS, 64), [[layer]], False)
    sent = []
    for forms in (("native", "native"), ("plain", "plain")):
        with net_of(forms, history.sizes, history.ranks) as net:
            circles = net.circles()
            together(*(lambda m=m, circles=circles: live(history, m, [circles[m]]) for m in range(2)))
            sent.append([circle.bytes_sent for circle in circles])
    assert sent[0] == sent[1]
    assert np.min(sent) > 64
