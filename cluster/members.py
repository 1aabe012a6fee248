"""Planned changes of members: the next epoch's group is built beside the running one, and taken between two steps.

Nothing pauses but the step at which all ranks say that they are ready. A change that fails before leaves the running
epoch as it is.
"""

import asyncio
from collections.abc import Sequence

from cluster.ranks import RankHandle
from experts.membership import EpochRecord

_BUILD_SECONDS = 15.0  # for all members to come together
_ENTER_SECONDS = 10.0  # for all of them to begin a step of the new epoch


class ChangeFailed(Exception):
    """The running epoch goes on without the change; the text says why."""


async def change_members(running: Sequence[RankHandle], joining: Sequence[RankHandle], record: EpochRecord) -> None:
    """Bring the ranks of `record` into its epoch. running: all members of the epoch in use; joining: loaded, in none.

    Ranks that run and are not in the record end their loops. Raises ChangeFailed.
    """
    staying = [handle for handle in running if record.membership.seats(handle.seat.rank)]
    members = [*staying, *joining]
    await _introduce(staying, [*running, *joining])  # who leaves is rung until it has had its last header
    calls = [handle.actor.prepare.remote(record) for handle in running]
    calls += [handle.actor.join.remote(record) for handle in joining]
    done = asyncio.gather(*calls, return_exceptions=True)
    try:
        results = await asyncio.wait_for(done, _BUILD_SECONDS)
        wrong = next((result for result in results if isinstance(result, BaseException)), None)
    except TimeoutError:
        wrong = TimeoutError(f"epoch {record.membership.epoch} was not built in {_BUILD_SECONDS:.0f} s")
    if wrong is not None:
        await asyncio.gather(*(handle.actor.drop_epoch.remote() for handle in running), return_exceptions=True)
        raise ChangeFailed(str(wrong).strip().splitlines()[-1]) from wrong
    try:
        await asyncio.wait_for(_entered(members, record.membership.epoch), _ENTER_SECONDS)
    except TimeoutError:
        raise ChangeFailed(f"no step of epoch {record.membership.epoch} began in {_ENTER_SECONDS:.0f} s") from None
    await _introduce(staying, members)


async def _introduce(staying: Sequence[RankHandle], to: Sequence[RankHandle]) -> None:
    """Tell ranks that bring tokens whose bells to ring."""
    for handle in staying:
        if handle.seat.runs_attention:
            await handle.actor.meet.remote([other.actor for other in to if other is not handle])


async def _entered(members: Sequence[RankHandle], epoch: int) -> None:
    bell = next(handle for handle in members if handle.seat.runs_attention)
    while True:
        await bell.actor.nudge.remote()
        if min(await asyncio.gather(*(handle.actor.epoch.remote() for handle in members))) >= epoch:
            return
        await asyncio.sleep(0.01)
