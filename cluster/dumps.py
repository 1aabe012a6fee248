"""Dumps of a whole cluster: of every rank and door, whether or not its event loop answers."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from cluster.ranks import RankHandle
from experts.dump import ProcessDump, dump_here
from experts.membership import Member

ANSWER = 2.0  # s for a process's event loop to answer


async def cluster_dump(
    ranks: Sequence[RankHandle], states: Mapping[int, str], doors: Mapping[str, Any]
) -> list[ProcessDump]:
    """The calling process (the supervisor), then all others at once. states: of seats; doors: actors by name."""
    asked = [_rank(handle, states.get(handle.seat.rank, "starting")) for handle in ranks]
    asked += [_asked(door, name, 0) for name, door in doors.items()]
    return [dump_here("supervisor"), *await asyncio.gather(*asked)]


async def _rank(handle: RankHandle, state: str) -> ProcessDump:
    seat = handle.seat
    name = f"rank {seat.rank} ({seat.role})"
    if state == "dead":
        return ProcessDump(name, seat.pid, f"is dead; its process: {process_state(seat)}")
    found = await _asked(handle.actor, name, seat.pid)
    if found.trouble:
        found = ProcessDump(name, seat.pid, f"{found.trouble}; its process: {process_state(seat)}")
    return found


async def _asked(actor: Any, name: str, pid: int) -> ProcessDump:
    try:
        found: ProcessDump = await asyncio.wait_for(actor.dump.remote(name), ANSWER)
        return found
    except TimeoutError:
        return ProcessDump(name, pid, f"does not answer within {ANSWER:.0f} s")
    except Exception as error:  # its process died, or its call failed: the others' dumps are wanted all the same
        return ProcessDump(name, pid, f"can't be asked: {type(error).__name__}")


def process_state(seat: Member) -> str:
    """What the kernel says of a rank's process, such as stopped or zombie."""
    if not seat.pid:
        return "not known yet"
    try:
        return psutil.Process(seat.pid).status()
    except psutil.NoSuchProcess:
        return "gone"
    except psutil.Error as error:
        return f"can't be seen ({type(error).__name__})"
