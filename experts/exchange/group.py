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

TIMEOUT = 10.0  # s, an operation that no error ends; a dead or closed peer ends it in milliseconds
BUILD_DEADLINE = 10.0  # s, for all members to come together


def open_store(host: str, port: int = 0, timeout: float = 30.0) -> TCPStore:
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
    epoch: int,
    index: int,
    size: int,
    device: str,
    host: str,
    timeout: float = TIMEOUT,
    deadline: float = BUILD_DEADLINE,
) -> Group:
    """Meet the epoch's other members at the store and connect to all of them; the epoch is the store's prefix.

    index: this member's number of `size`; host: address of this machine that the others reach; timeout: s per
    operation; deadline: s until all must have met. The store is used through a clone, so that waiting here holds
    up no one else. Raises RankLost (step -1) when the members did not come together.
    """
    own = store.clone()  # type: ignore[attr-defined]  # missing in torch's stubs
    own.set_timeout(timedelta(seconds=deadline))
    meeting = PrefixStore(f"epoch{epoch}", own)
    started = time.monotonic()
    try:
        if device.startswith("cuda"):
            return NcclGroup(meeting, index, size, device, timeout)
        return GlooGroup(meeting, index, size, host, timeout)
    except RuntimeError as error:
        waited = time.monotonic() - started
        raise RankLost(epoch, -1, f"the group did not come together in {waited:.1f} s: {error}") from error
