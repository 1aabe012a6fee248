"""Balancers of a thread cluster with a policy of the test's, and requests that heat few experts."""

import numpy as np

from cluster.balance.policies.base import Policy
from cluster.control.mover import MoveLimits
from cluster.control.rebalance import Balancer, BalancerSettings
from cluster.state.events import EventLog
from experts.worker.host import WorkerHost
from experts.worker.remote import target
from router_svc.request import EngineRequest
from tests import checkpoints
from tests.engines import sampling
from tests.topologies import ThreadCluster

SETTINGS = BalancerSettings(True, MoveLimits(20_000), least_pairs=64, interval=4, horizon=1e5)


def balancer_of(
    cluster: ThreadCluster, policy: Policy, events: EventLog, settings: BalancerSettings = SETTINGS
) -> Balancer:
    """In place of the cell's own; it does not run yet."""
    cell = cluster.cell

    async def exchanged() -> Balancer:
        assert cell._balancing is not None
        cell._balancing.cancel()
        cell._balancer = Balancer(cell.roster.seats, cell.placement, policy, settings, events)
        return cell._balancer

    return cluster.call(exchanged())


def hosts_of(cluster: ThreadCluster) -> list[WorkerHost]:
    """Of the epoch's members, in order of ranks."""
    return [target(seat.port) for seat in cluster.cell.roster.seats]


def requests(seed: int, count: int = 8) -> list[EngineRequest]:
    """Prompts of few different ids, so that few experts are hot."""
    rng = np.random.default_rng(seed)
    some = rng.integers(1, checkpoints.VOCABULARY, 3)
    return [EngineRequest(f"r{seed}-{i}", tuple(rng.choice(some, 60).tolist()), sampling(8)) for i in range(count)]
