"""Planned changes of members: the next epoch's group is built beside the running one, and taken between two steps.

Nothing pauses but the step at which all ranks say that they are ready. A change that fails before leaves the running
epoch as it is.
"""

import asyncio
from collections.abc import Sequence

from cluster.state.roster import Seat
from experts.epoch.membership import EpochRecord
from experts.worker.deadlines import DEADLINES


class ChangeFailed(Exception):
    """The running epoch goes on without the change; the text says why."""


async def change_members(running: Sequence[Seat], joining: Sequence[Seat], record: EpochRecord) -> None:
    """Bring the ranks of `record` into its epoch. running: all members of the epoch in use; joining: loaded, in none.

    Ranks that run and are not in the record end their loops. Raises ChangeFailed.
    """
    staying = [seat for seat in running if record.membership.seats(seat.rank)]
    members = [*staying, *joining]
    await _introduce(staying, [*running, *joining])  # who leaves is rung until it has had its last header
    calls = [seat.port.prepare(record) for seat in running]
    calls += [seat.port.join(record, []) for seat in joining]
    done = asyncio.gather(*calls, return_exceptions=True)
    try:
        results = await asyncio.wait_for(done, DEADLINES.build)
        wrong = next((result for result in results if isinstance(result, BaseException)), None)
    except TimeoutError:
        wrong = TimeoutError(f"epoch {record.membership.epoch} was not built in {DEADLINES.build:.0f} s")
    if wrong is not None:
        await asyncio.gather(*(seat.port.drop_epoch() for seat in running), return_exceptions=True)
        raise ChangeFailed(str(wrong).strip().splitlines()[-1]) from wrong
    try:
        await asyncio.wait_for(_entered(members, record.membership.epoch), DEADLINES.enter)
    except TimeoutError:
        raise ChangeFailed(f"no step of epoch {record.membership.epoch} began in {DEADLINES.enter:.0f} s") from None
    await _introduce(staying, members)


async def _introduce(staying: Sequence[Seat], to: Sequence[Seat]) -> None:
    """Have ranks that bring tokens ring these bells."""
    for seat in staying:
        if seat.member.runs_attention:
            await seat.port.meet([other.port for other in to if other is not seat])


async def _entered(members: Sequence[Seat], epoch: int) -> None:
    bell = next(seat for seat in members if seat.member.runs_attention)
    while True:
        await bell.port.nudge()
        if min(await asyncio.gather(*(seat.port.epoch() for seat in members))) >= epoch:
            return
        await asyncio.sleep(0.01)
