"""A lease ends once, when nobody renews it."""

import asyncio

from experts.lease import Lease


async def test_renewed_lease_lives_and_a_forgotten_one_ends_once() -> None:
    ended: list[int] = []
    lease = Lease(lambda: ended.append(1), seconds=0.2)
    for _ in range(6):
        await asyncio.sleep(0.1)
        lease.renew()
    assert not ended
    await asyncio.sleep(0.6)
    assert ended == [1]
