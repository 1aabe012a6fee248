"""Building groups: the store where members meet, and the transport that fits the device.

Groups are built straight from a store with the epoch as prefix, never through torch's default group.
"""

import socket
import time
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore

from experts.errors import RankLost
from experts.exchange.gloo import GlooGroup
from experts.exchange.nccl import NcclGroup
from experts.exchange.transport import Group
from experts.membership import Membership

TIMEOUT = 10.0  # s, an operation that no error ends; a dead or closed peer ends it in milliseconds
BUILD_DEADLINE = 10.0  # s, for all members to come together


def serve_store(host: str, port: int = 0, timeout: float = 30.0) -> TCPStore:
    """A rendezvous store that listens on `host` only; port 0 picks a free one (`.port` tells it)."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listener = socket.create_server((host, port), family=family, backlog=128)
    bound = listener.getsockname()[1]
    return TCPStore(
        host,
        bound,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout),
        master_listen_fd=listener.detach(),
    )


def connect_store(host: str, port: int, timeout: float = 10.0) -> TCPStore:
    """A client of a store served elsewhere. Raises torch's DistError when it can't be reached within `timeout` s."""
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout))


def build_group(
    store: Store,
    membership: Membership,
    rank: int,
    device: str = "cpu",
    timeout: float = TIMEOUT,
    deadline: float = BUILD_DEADLINE,
) -> Group:
    """Meet the epoch's other members at the store and connect to all of them; the epoch is the store's prefix.

    store: used through a clone, so that a wait here holds up no one else. timeout: s per operation;
    deadline: s until all must have met. Raises RankLost (step -1) when they did not.
    """
    own = store.clone()
    own.set_timeout(timedelta(seconds=deadline))
    meeting = PrefixStore(f"epoch{membership.epoch}", own)
    started = time.monotonic()
    try:
        if device.startswith("cuda"):
            return NcclGroup(meeting, membership, rank, device, timeout)
        return GlooGroup(meeting, membership, rank, timeout)
    except RuntimeError as error:
        waited = time.monotonic() - started
        raise RankLost(membership.epoch, -1, f"the group did not come together in {waited:.1f} s: {error}") from error
