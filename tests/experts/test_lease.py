"""A lease ends once, when nobody renews it."""

import asyncio

from experts.worker.lease import Lease
from tests.patience import PATIENCE


async def test_renewed_lease_lives_and_a_forgotten_one_ends_once() -> None:
    ended: list[int] = []
    lease = Lease(lambda: ended.append(1), seconds=1.0)
    for _ in range(12):
        await asyncio.sleep(0.1)
        lease.renew()
    assert not ended
    async with asyncio.timeout(PATIENCE):
        while not ended:
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.1)
    assert ended == [1]
