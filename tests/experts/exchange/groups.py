"""Groups whose members are threads of this process, with real gloo or links between them."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from experts.epoch.membership import HERE, Member, Membership
from experts.exchange.base import ExchangeCounters, ExchangeOrder
from experts.exchange.block import BlockForm
from experts.exchange.collective import CollectiveExchange
from experts.exchange.doorbell import Doorbell
from experts.exchange.group import build_group, connect_store, open_store
from experts.exchange.guard import GuardedGroup
from experts.exchange.links.circle import sizes_of
from experts.exchange.links.control import LinkControl
from experts.exchange.links.exchange import LinksExchange
from experts.exchange.links.group import LinkGroup
from experts.exchange.links.hub import Hub
from experts.exchange.transport import Group
from experts.placement import Placement
from tests.patience import PATIENCE


def membership(attention: int, experts: int, colocate: bool = False, epoch: int = 0) -> Membership:
    """The seats of a topology."""
    if colocate:
        return Membership(epoch, tuple(Member(r, "both") for r in range(attention)))
    seats = [Member(r, "expert") for r in range(experts)]
    return Membership(epoch, tuple(seats + [Member(experts + a, "attention") for a in range(attention)]))


def order_of(
    rank: int, placement: Placement, form: BlockForm, budget: int = 1024, hub: Hub | None = None
) -> ExchangeOrder:
    """What an exchange knows of a rank on the CPU of this machine."""
    return ExchangeOrder(rank, HERE, "cpu", placement, form, budget, hub=hub)


def guarded(group: Group, members: Membership) -> GuardedGroup:
    """A group as its exchange has it."""
    return GuardedGroup(group, members, ExchangeCounters())


def hubs_of(members: Membership, placement: Placement, form: BlockForm, budget: int = 1024) -> list[Hub]:
    """A hub for each member, which the caller closes."""
    sizes = sizes_of(form, placement, budget)
    return [Hub(HERE, "secret", member.rank, member.incarnation, sizes) for member in members.members]


def reached(members: Membership, hubs: list[Hub]) -> Membership:
    """The members with the ports of their hubs."""
    pairs = zip(members.members, hubs, strict=True)
    return replace(members, members=tuple(replace(member, exchange_port=hub.port) for member, hub in pairs))


def run_members(
    members: Membership,
    placement: Placement,
    form: BlockForm,
    body: Callable[[Any, Member], Any],
    budget: int = 1024,
    timeout: float = PATIENCE,
    alone: bool = True,
    kind: str = "gloo",
) -> list[Any]:
    """Run `body` in a thread per member, each with its exchange; their results in order. The first error is raised.

    alone: each source splits its own tokens; False: all go by one split of everyone's
    kind: of exchange, gloo or links
    """
    store = open_store(HERE)
    hubs = hubs_of(members, placement, form, budget) if kind == "links" else []
    members = reached(members, hubs) if hubs else members
    results: list[Any] = [None] * members.size
    errors: list[BaseException] = []

    def exchange_of(index: int, seat: Member) -> CollectiveExchange | LinksExchange:
        if hubs:
            order = order_of(seat.rank, placement, form, budget, hubs[index])
            group = LinkGroup(hubs[index].circle(members, PATIENCE, timeout), members, index, timeout)
            return LinksExchange(order, hubs[index], group, LinkControl(Doorbell()), 1 << 30 if alone else 0)
        client = connect_store(HERE, store.port, PATIENCE)
        joined = build_group(client, members.epoch, index, members.size, "cpu", HERE, timeout, PATIENCE)
        order = order_of(seat.rank, placement, form, budget)
        return CollectiveExchange(order, guarded(joined, members), collective_bytes=1 << 30 if alone else -1)

    def main(index: int, seat: Member) -> None:
        try:
            exchange = exchange_of(index, seat)
            try:
                results[index] = body(exchange, seat)
            finally:
                exchange.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=main, args=(i, seat), daemon=True) for i, seat in enumerate(members.members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
    store.close()
    for hub in hubs:
        hub.close()
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a member is stuck"
    return results


def random_inputs(
    tokens: int, form: BlockForm, experts: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [T, H], ids [T, K] distinct per token, weights [T, K]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, form.hidden, generator=generator).to(form.dtype)
    ids = (
        torch.stack([torch.randperm(experts, generator=generator)[: form.top_k] for _ in range(tokens)])
        if tokens
        else torch.empty(0, form.top_k)
    )
    return x, ids.to(torch.int32), torch.rand(tokens, form.top_k, generator=generator)
