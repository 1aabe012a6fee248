"""Building groups: the store where members meet, and the transport that fits the device.

Groups are built straight from a store with the epoch as prefix, never through torch's default group.
"""

import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import PrefixStore

from experts.background import only_log
from experts.errors import RankLost
from experts.exchange.gloo import GlooGroup
from experts.exchange.nccl import NcclGroup
from experts.exchange.store import StoreClient, StoreServer
from experts.exchange.transport import BUILD_DEADLINE, Group

TIMEOUT = 10.0  # s, an operation that no error ends; over gloo a dead or closed peer ends it in milliseconds


def open_store(host: str, port: int = 0, ended: Callable[[str], object] = only_log) -> StoreServer:
    """A rendezvous store that listens on `host` only; port 0 picks a free one (`.port` tells it). ended: see StoreServer."""
    return StoreServer(host, port, ended)


def connect_store(host: str, port: int, timeout: float = 10.0) -> StoreClient:
    """A client of a store opened elsewhere. Raises DistStoreError when it can't be reached within `timeout` s."""
    return StoreClient(host, port, timeout)


def build_group(
    store: StoreClient,
    epoch: int,
    index: int,
    size: int,
    device: str,
    host: str,
    timeout: float = TIMEOUT,
    deadline: float = BUILD_DEADLINE,
    connect: float = BUILD_DEADLINE,
) -> Group:
    """Meet the epoch's other members at the store and connect to all of them; the epoch is the store's prefix.

    index: this member's number of `size`
    host: address of this machine that the others reach
    timeout: s per operation
    deadline: s until all must have met
    connect: s for gloo to connect them then

    The store is used through a clone, so that waiting here holds
    up no one else. Raises RankLost (step -1) when the members did not come together.
    """
    started = time.monotonic()
    try:
        own = store.clone()
        own.set_timeout(timedelta(seconds=deadline))
        meeting = PrefixStore(f"epoch{epoch}", own)
        group: Group
        if device.startswith("cuda"):
            group = NcclGroup(meeting, index, size, device, timeout, deadline)
        else:
            group = GlooGroup(meeting, index, size, host, timeout, connect)
    except RuntimeError as error:
        waited = time.monotonic() - started
        raise RankLost(epoch, -1, f"the group did not come together in {waited:.1f} s: {error}") from error
    group.kept = (own, meeting)
    return group
