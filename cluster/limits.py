"""What a start needs of the machine beside weights: memory, or the error where it is not there, and open files.

Knows no torch, so that it can be asked before torch itself takes memory.
"""

import resource

from cluster.config import ServeConfig
from experts.errors import UserError
from experts.machine import FreeMemory, free_memory

PROCESS_BYTES = 400 << 20  # of a process beside weights and cache: torch, Ray, buffers
_GIB = 1 << 30


def check_processes(config: ServeConfig) -> None:
    """Raise UserError where the processes alone do not fit. With a Ray of several nodes their memory is not known here."""
    if config.ray_address is not None:
        return
    processes = config.attention_workers + (0 if config.colocate else config.experts)
    check_fits(free_memory(), {"processes": processes * PROCESS_BYTES})


def check_fits(free: FreeMemory, parts: dict[str, int]) -> None:
    """Raise UserError where the parts, in bytes, do not fit together into what is free."""
    needed = sum(parts.values())
    if needed > free.bytes:
        shown = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in parts.items())
        raise UserError(f"{free.bytes / _GIB:.2f} GiB of free memory", f"{needed / _GIB:.2f} GiB ({shown})", free.where)


def raise_file_limit() -> None:
    """Let this process, and those that it starts, open as many files as the system allows it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
