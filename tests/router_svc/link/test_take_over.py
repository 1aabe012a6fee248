"""A request whose id runs: the same call takes its place, another is refused, whichever ingress and rank have the older."""

import asyncio

import pytest

from router_svc.api.engines import EventStream, StreamFailed
from router_svc.link.client import LinkAddress, LinkEngines
from router_svc.link.server import LinkServer
from router_svc.request import Cancel, EngineRequest, Message, TokenEvent
from router_svc.sampling import Sampling

OLD = EngineRequest("r", (1, 2), Sampling(max_tokens=5, seed=1), attempt=1, body="a")
AGAIN = EngineRequest("r", (1, 2), Sampling(max_tokens=5, seed=1), attempt=2, body="a")
OTHER = EngineRequest("r", (3,), Sampling(max_tokens=9, seed=1), attempt=3, body="b")


class Ranks:
    """Attention ranks: real link servers, with a list where their engines would be."""

    def __init__(self, count: int) -> None:
        self.posted: list[list[Message]] = [[] for _ in range(count)]
        self.servers = [LinkServer(posted.append, "secret", rank) for rank, posted in enumerate(self.posted)]

    async def ingress(self) -> LinkEngines:
        self.ports = getattr(self, "ports", None) or [await server.start("127.0.0.1") for server in self.servers]
        engines = LinkEngines("secret")
        await engines.connect([LinkAddress(rank, "127.0.0.1", port) for rank, port in enumerate(self.ports)])
        engines.show_state("ready", "")
        return engines

    async def until(self, rank: int, messages: list[Message]) -> None:
        async with asyncio.timeout(30):
            while self.posted[rank] != messages:
                await asyncio.sleep(0.005)

    def answer(self, rank: int, request: EngineRequest) -> None:
        event = TokenEvent(request.request_id, request.attempt, 0, 0, (7,), finish_reason="length")
        self.servers[rank].deliver([event])


async def failure(stream: EventStream) -> str:
    with pytest.raises(StreamFailed) as caught:
        await asyncio.wait_for(stream.next(), 30)
    return str(caught.value.event.code)


async def answered(stream: EventStream) -> bool:
    events = await asyncio.wait_for(stream.next(), 30)
    return events is not None and [event.token_ids for event in events] == [(7,)] and stream.over


async def busy(engines: LinkEngines) -> None:
    """Give rank 0 so much to do that the ingress picks rank 1 next."""
    engines.submit(EngineRequest("busy", (9,) * 400, Sampling(max_tokens=400, seed=1), attempt=9, body="z"))


async def test_in_one_ingress() -> None:
    ranks = Ranks(1)
    engines = await ranks.ingress()
    old = engines.submit(OLD)
    assert await failure(engines.submit(OTHER)) == "INVALID_ARGUMENT"
    again = engines.submit(AGAIN)
    assert await failure(old) == "ABORTED"
    old.cancel()
    await ranks.until(0, [OLD, Cancel("r"), AGAIN])
    ranks.answer(0, AGAIN)
    assert await answered(again)


async def test_across_two_ingresses() -> None:
    ranks = Ranks(1)
    door, replica = await ranks.ingress(), await ranks.ingress()
    old = door.submit(OLD)
    await ranks.until(0, [OLD])
    assert await failure(replica.submit(OTHER)) == "INVALID_ARGUMENT"
    again = replica.submit(AGAIN)
    assert await failure(old) == "ABORTED"
    old.cancel()
    await ranks.until(0, [OLD, Cancel("r"), AGAIN])
    ranks.answer(0, AGAIN)
    assert await answered(again)


async def test_across_two_ingresses_and_two_ranks() -> None:
    ranks = Ranks(2)
    door, replica = await ranks.ingress(), await ranks.ingress()
    old = door.submit(OLD)
    await ranks.until(0, [OLD])
    await busy(replica)
    refused = replica.submit(OTHER)
    assert await failure(refused) == "INVALID_ARGUMENT"
    await ranks.until(1, [OTHER, Cancel("r")])
    again = replica.submit(AGAIN)
    assert await failure(old) == "ABORTED"
    await ranks.until(1, [OTHER, Cancel("r"), AGAIN])
    assert ranks.posted[0][-1] == Cancel("r"), "the older one's work ends"
    ranks.answer(1, AGAIN)
    assert await answered(again)
