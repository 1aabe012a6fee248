"""Planned epochs over real gloo groups: members leave and join between two steps, and nobody else notices."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from experts.epoch.agreement import StepHeader, StepWish
from experts.epoch.membership import Member, Membership
from experts.errors import RankLost
from experts.exchange.block import BlockForm
from experts.exchange.collective import CollectiveExchange
from experts.exchange.group import build_group, connect_store, open_store
from experts.exchange.store import StoreServer
from experts.exchange.wire import Route
from experts.layers import ExpertLayers
from experts.placement import Placement
from experts.slots.ffn import swiglu_reference
from experts.spec import ExpertNames, ExpertsSpec
from tests.experts.exchange.groups import guarded, order_of, random_inputs
from tests.experts.small_experts import all_weights
from tests.patience import PATIENCE

SPEC = ExpertsSpec((0,), 8, (2,), 16, 8, "silu", ExpertNames(*("unused",) * 5))
FORM = BlockForm(SPEC.hidden, SPEC.top_k, torch.float32)
SEATS = (Member(0, "expert"), Member(1, "expert"), Member(2, "expert"), Member(3, "attention"))
# ranks 0 and 2 hold all experts between them, rank 1 nothing: it may leave and join
PLACEMENT = Placement(0, 3, 4, np.array([[0, 1, 2, 3, -1, -1, -1, -1, 4, 5, 6, 7]]))


def membership(epoch: int, *ranks: int) -> Membership:
    return Membership(epoch, tuple(SEATS[rank] for rank in ranks))


class Node:
    """One member as a thread: steps as it is told, one after another."""

    def __init__(self, store: StoreServer, seat: Member, members: Membership) -> None:
        self._store, self.seat = store, seat
        group = self.build(members)
        self.exchange = CollectiveExchange(order_of(seat.rank, PLACEMENT, FORM), guarded(group, members))
        self.headers: list[StepHeader] = []
        self.error: BaseException | None = None

    def build(self, members: Membership, deadline: float = PATIENCE) -> Any:
        client = connect_store("127.0.0.1", self._store.port, PATIENCE)
        index = members.index(self.seat.rank)
        return build_group(client, members.epoch, index, members.size, "cpu", "127.0.0.1", PATIENCE, deadline)

    def offer(self, members: Membership) -> None:
        self.exchange.offer_epoch(members, self.build(members) if members.seats(self.seat.rank) else None)

    def step(self, wish: StepWish | None = None) -> StepHeader:
        self.headers.append(self.exchange.open_step(wish or StepWish()))
        return self.headers[-1]


def together(*work: Callable[[], Any]) -> list[Any]:
    """Run all at once, each in a thread; their results. The first error is raised."""
    results: list[Any] = [None] * len(work)
    errors: list[BaseException] = []

    def one(i: int) -> None:
        try:
            results[i] = work[i]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(i,), daemon=True) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "a member is stuck"
    if errors:
        raise errors[0]
    return results


@pytest.fixture
def nodes() -> Any:
    store = open_store("127.0.0.1")
    members = membership(1, 0, 1, 2, 3)
    made = together(*(lambda seat=seat: Node(store, seat, members) for seat in SEATS))
    try:
        yield made
    finally:
        for node in made:
            node.exchange.close()
        store.close()


def test_a_member_leaves_and_another_process_joins_on_its_seat(nodes: list[Node]) -> None:
    together(*(node.step for node in nodes))
    after = membership(2, 0, 2, 3)
    together(*(lambda node=node: node.offer(after) for node in nodes))
    headers = together(*(node.step for node in nodes))
    assert [h.stop for h in headers] == [False, True, False, False], "the last header of who leaves says stop"
    assert {(h.epoch, h.step) for h in headers[::2]} == {(2, 0)}
    staying = [nodes[0], nodes[2], nodes[3]]
    assert [node.exchange.member for node in staying] == [0, 1, 2]
    headers = together(*(node.step for node in staying))
    assert {(h.epoch, h.step, len(h.tokens)) for h in headers} == {(2, 1, 3)}

    again = membership(3, 0, 1, 2, 3)
    joined = together(
        lambda: Node(nodes[1]._store, SEATS[1], again), *(lambda node=node: node.offer(again) for node in staying)
    )[0]
    nodes[1] = joined
    headers = together(*(node.step for node in nodes))
    assert {(h.epoch, h.step, len(h.tokens)) for h in headers} == {(3, 0, 4)}


def test_tokens_go_on_through_a_change_of_members(nodes: list[Node]) -> None:
    w13, w2 = all_weights()
    wish = StepWish(decode=5)

    def run(node: Node, seed: int) -> torch.Tensor | None:
        holds = node.seat.holds_experts
        layers = ExpertLayers(SPEC, node.exchange, _Slots(node.seat.rank) if holds else None, torch.float32, "cpu")  # type: ignore[arg-type]
        if holds:
            if not node.step().stop:
                layers.run_empty()
            return None
        node.step(wish)
        x, ids, weights = random_inputs(5, FORM, SPEC.experts, seed)
        return layers(0, x, Route(ids, weights))

    def all_run(seed: int) -> None:
        got = together(*(lambda node=node: run(node, seed) for node in nodes))[-1]
        x, ids, weights = random_inputs(5, FORM, SPEC.experts, seed)
        assert torch.allclose(got, swiglu_reference(x, ids, weights, w13, w2), atol=1e-4)

    all_run(0)
    after = membership(2, 0, 2, 3)
    together(*(lambda node=node: node.offer(after) for node in nodes))
    all_run(1)
    del nodes[1]
    all_run(2)
    assert {node.exchange.epoch for node in nodes} == {2}


class _Slots:
    """A rank's experts, computed plainly."""

    slots = 4

    def __init__(self, rank: int) -> None:
        self._held = PLACEMENT.local(rank)[0]

    def forward(self, layer: int, batch: Any) -> torch.Tensor:
        w13, w2 = all_weights()
        ids = torch.where(
            batch.slots < 0, -1, torch.from_numpy(self._held.copy())[batch.slots.clamp_min(0).long()]
        ).int()
        return swiglu_reference(batch.x, ids, batch.weights, w13, w2)


def test_a_group_that_does_not_come_together_changes_nothing(nodes: list[Node]) -> None:
    after = membership(2, 0, 2, 3)
    with pytest.raises(RankLost, match="did not come together"):
        nodes[0].build(after, deadline=0.3)
    nodes[1].offer(after)  # told that it is not in it
    for node in nodes:
        node.exchange.drop_epoch(2)
    headers = together(*(node.step for node in nodes))
    assert {(h.epoch, h.stop) for h in headers} == {(1, False)}
    later = membership(3, 0, 2, 3)
    together(*(lambda node=node: node.offer(later) for node in nodes))
    assert together(*(node.step for node in nodes))[0].epoch == 3


def test_nobody_goes_before_all_are_ready(nodes: list[Node]) -> None:
    after = membership(2, 0, 2, 3)
    together(*(lambda node=node: node.offer(after) for node in (nodes[0], nodes[2], nodes[3])))
    assert {h.epoch for h in together(*(node.step for node in nodes))} == {1}, "rank 1 was not told yet"
    nodes[1].offer(after)
    headers = together(*(node.step for node in nodes))
    assert {h.epoch for h in (headers[0], headers[2], headers[3])} == {2}


def test_a_stop_comes_before_a_change(nodes: list[Node]) -> None:
    after = membership(2, 0, 2, 3)
    together(*(lambda node=node: node.offer(after) for node in nodes))
    headers = together(nodes[0].step, nodes[1].step, nodes[2].step, lambda: nodes[3].step(StepWish(stop=True)))
    assert {(h.epoch, h.stop) for h in headers} == {(1, True)}


def test_an_epoch_that_was_given_up_is_not_mixed_with_the_next(nodes: list[Node]) -> None:
    given_up, after = membership(2, 0, 2, 3), membership(3, 0, 2, 3)
    nodes[1].offer(given_up)  # and was never told to forget it
    together(*(lambda node=node: node.offer(after) for node in (nodes[0], nodes[2], nodes[3])))
    assert {h.epoch for h in together(*(node.step for node in nodes))} == {1}
    nodes[1].offer(after)
    headers = together(*(node.step for node in nodes))
    assert {h.epoch for h in (headers[0], headers[2], headers[3])} == {3}
    assert headers[1].stop
