"""Ending a rank's process for good."""

import os
import signal
from contextlib import suppress

from cluster.state.roster import Seat
from experts.epoch.membership import HERE
from experts.worker import remote


def end_process_of(seat: Seat) -> None:
    """End a process that does not answer: a stopped one reacts to nothing but the kernel."""
    remote.kill(seat.port)
    if seat.member.node_ip == HERE and seat.member.pid not in (0, os.getpid()):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(seat.member.pid, signal.SIGKILL)
