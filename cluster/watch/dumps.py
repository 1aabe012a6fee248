"""Dumps of other processes: of every rank and door, whether or not its event loop answers."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence

import psutil

from cluster.state.roster import Seat
from experts.dump import ProcessDump
from experts.epoch.membership import Member
from experts.worker.deadlines import DEADLINES
from router_svc.ingress.door import Door


async def dumps_of(seats: Sequence[Seat]) -> list[ProcessDump]:
    """All of them at once."""
    return await asyncio.gather(*map(_rank, seats))


async def dumps_of_doors(doors: Mapping[str, Door]) -> list[ProcessDump]:
    """All of them at once. doors: ports by name."""
    return await asyncio.gather(*(_asked(door.dump(name), name, 0) for name, door in doors.items()))


async def _rank(seat: Seat) -> ProcessDump:
    member = seat.member
    name = f"rank {member.rank} ({member.role})"
    if seat.state == "dead":
        return ProcessDump(name, member.pid, f"is dead; its process: {process_state(member)}")
    found = await _asked(seat.port.dump(name), name, member.pid)
    if found.trouble:
        found = ProcessDump(name, member.pid, f"{found.trouble}; its process: {process_state(member)}")
    return found


async def _asked(call: Awaitable[ProcessDump], name: str, pid: int) -> ProcessDump:
    try:
        return await call
    except TimeoutError:
        return ProcessDump(name, pid, f"does not answer within {DEADLINES.answer:.0f} s")
    except Exception as error:  # its process died, or its call failed: the others' dumps are wanted all the same
        return ProcessDump(name, pid, f"can't be asked: {type(error).__name__}")


def process_state(member: Member) -> str:
    """What the kernel says of a rank's process, such as stopped or zombie."""
    if not member.pid:
        return "not known yet"
    try:
        return psutil.Process(member.pid).status()
    except psutil.NoSuchProcess:
        return "gone"
    except psutil.Error as error:
        return f"can't be seen ({type(error).__name__})"
