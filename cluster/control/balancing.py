"""The balancer and the recording that a plan asks for, put together."""

import asyncio
from collections.abc import Callable, Sequence

from cluster.balance.policies.registry import load_policy
from cluster.control.mover import MoveLimits
from cluster.control.orders import Orders
from cluster.control.rebalance import Balancer, BalancerSettings
from cluster.plan import ServePlan
from cluster.state.events import EventLog
from cluster.state.roster import Seat
from cluster.watch.recorder import LoadRecorder, Recording
from experts.slots.slots import slot_bytes


def recording_of(plan: ServePlan, note: Callable[[str, str], None]) -> Recording | None:
    """Begun, in the running event loop, where the plan asks for one. note: takes events."""
    config = plan.config
    if config.record_loads is None:
        return None
    recorder = LoadRecorder(config.record_loads, plan.name, plan.spec.experts.top_k)
    return Recording(recorder, config.record_interval, note)


async def balancer_of(orders: Orders, seats: Sequence[Seat], events: EventLog, recording: Recording | None) -> Balancer:
    """Not running yet. seats: all members of the first epoch. Raises UserError for a policy that can't be loaded here."""
    plan = orders.plan
    config = plan.config
    settings = BalancerSettings(
        enabled=plan.balancing.enabled,
        off=plan.balancing.reason,
        moves=MoveLimits(slot_bytes(plan.spec.experts, plan.dtype)),
        least_pairs=orders.least_pairs,
        interval=config.eplb_interval,
        min_copies=plan.min_copies,
    )
    policy = await asyncio.to_thread(
        load_policy, config.eplb_policy, "--eplb-policy", plan.user_folder, config.eplb_policy_timeout
    )
    return Balancer(seats, plan.placement, policy, settings, events, orders.policy, recording)
