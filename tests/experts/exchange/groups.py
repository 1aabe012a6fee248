"""Groups whose members are threads of this process, with real gloo between them."""

import threading
from collections.abc import Callable
from typing import Any

import torch

from experts.epoch.membership import Member, Membership
from experts.exchange.block import BlockForm
from experts.exchange.collective import CollectiveExchange
from experts.exchange.group import build_group, connect_store, open_store
from experts.exchange.sizes import COLLECTIVE_BYTES
from experts.placement import Placement
from tests.patience import PATIENCE


def membership(attention: int, experts: int, colocate: bool = False, epoch: int = 0) -> Membership:
    """The seats of a topology."""
    if colocate:
        return Membership(epoch, tuple(Member(r, "both") for r in range(attention)))
    seats = [Member(r, "expert") for r in range(experts)]
    return Membership(epoch, tuple(seats + [Member(experts + a, "attention") for a in range(attention)]))


def run_members(
    members: Membership,
    placement: Placement,
    form: BlockForm,
    body: Callable[[CollectiveExchange, Member], Any],
    budget: int = 1024,
    timeout: float = PATIENCE,
    device: str = "cpu",
    collective_bytes: int = COLLECTIVE_BYTES,
) -> list[Any]:
    """Run `body` in a thread per member; their results in order. The first error is raised."""
    store = open_store("127.0.0.1")
    results: list[Any] = [None] * members.size
    errors: list[BaseException] = []

    def main(index: int, seat: Member) -> None:
        try:
            place = f"cuda:{index}" if device == "cuda" else device
            client = connect_store("127.0.0.1", store.port, PATIENCE)
            group = build_group(client, members.epoch, index, members.size, place, "127.0.0.1", timeout, PATIENCE)
            exchange = CollectiveExchange(
                group, members, seat.rank, placement, form, budget, collective_bytes=collective_bytes
            )
            del group
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
