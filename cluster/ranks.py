"""RankHandle: one rank's actor as the supervisor holds it, and the orders that its process starts from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from cluster.balance.cost import split_policy
from cluster.plan import ServePlan
from cluster.simulate.source import SourceActor, SourceOrder
from experts.actor import ExpertActor
from experts.exchange.split import SplitPolicy
from experts.loads import StepLoads
from experts.machine import cores
from experts.membership import Member
from experts.migrate import Move, Staged
from experts.placement import Placement
from experts.rank import RankOrder
from router_svc.actor import AttentionActor, AttentionOrder


@dataclass(slots=True)
class RankHandle:
    """A seat with its actor. link_port: of an attention rank, once it has loaded."""

    seat: Member
    actor: Any
    link_port: int = 0

    @property
    def title(self) -> str:
        """The rank for people."""
        return f"rank {self.seat.rank} ({self.seat.role}, pid {self.seat.pid})"


def start_rank(
    plan: ServePlan, seat: Member, secret: str, namespace: str, policy: SplitPolicy | None = None
) -> RankHandle:
    """Start a rank's process; it loads nothing yet. Ranks take no CPU resource: they share the cores by turns.

    policy: of the split, as the other ranks have it by now; None: as at the start.
    """
    order = replace(_order(plan, seat, secret), policy=policy or policy_of(plan))
    options: dict[str, Any] = {
        "name": f"rank-{seat.rank}" + (f"-{seat.incarnation}" if seat.incarnation else ""),
        "namespace": namespace,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_concurrency": 64,
        "num_gpus": 1 if plan.device == "cuda" else 0,
    }
    if seat.runs_attention and plan.synthetic is not None:
        source = SourceOrder(plan.synthetic.tokens, plan.synthetic.loads)
        actor = ray.remote(SourceActor).options(**options).remote(order, source)
    elif seat.runs_attention:
        actor = ray.remote(AttentionActor).options(**options).remote(AttentionOrder(order, plan.spec, plan.engine))
    else:
        actor = ray.remote(ExpertActor).options(**options).remote(order)
    return RankHandle(seat, actor)


def policy_of(plan: ServePlan) -> SplitPolicy:
    """The split's policy before anything is known of the ranks' speeds."""
    return split_policy(plan.device) if plan.synthetic is None else SplitPolicy(plan.synthetic.pace.floor)


def _order(plan: ServePlan, seat: Member, secret: str) -> RankOrder:
    """Experts work at the same time and divide the cores; attention works while they wait and divides them anew."""
    peers = [s for s in plan.seats if s.runs_attention == seat.runs_attention]
    return RankOrder(
        rank=seat.rank,
        folder=plan.folder,
        spec=plan.spec.experts,
        placement=plan.placement,
        dtype=plan.dtype,
        device=plan.device,
        threads=max(1, min(cores() // len(peers), plan.most_threads)),
        budget=plan.engine.max_num_batched_tokens,
        node_host=seat.node_ip,
        holds=seat.holds_experts,
        secret=secret,
        pace=plan.synthetic.pace_of(seat.rank) if plan.synthetic is not None and seat.holds_experts else None,
    )


class RayPort:
    """A rank's actor as the balancer uses it."""

    def __init__(self, handle: RankHandle, weights_port: int) -> None:
        self.rank, self.title, self.holds = handle.seat.rank, handle.title, handle.seat.holds_experts
        self.runs_attention = handle.seat.runs_attention
        self.host, self.weights_port = handle.seat.node_ip, weights_port
        self._actor = handle.actor

    async def stepped(self) -> None:
        """Wait until there are loads that nobody asked for."""
        await self._actor.stepped.remote()

    async def steps(self) -> list[StepLoads]:
        """Loads of the steps since the last call."""
        return list(await self._actor.steps.remote())

    async def stage(self, moves: Sequence[Move], bandwidth: float) -> list[Staged]:
        """Fetch experts into staging."""
        return list(await self._actor.stage.remote(list(moves), bandwidth))

    async def offer(self, placement: Placement, policy: SplitPolicy) -> None:
        """Have a placement used as soon as all ranks offer it."""
        await self._actor.offer.remote(placement, policy)

    async def drop_staged(self) -> None:
        """Forget what was staged."""
        await self._actor.drop_staged.remote()

    async def version(self) -> int:
        """Placement version of the newest step."""
        return int(await self._actor.version.remote())

    async def nudge(self) -> None:
        """Have the group run a step."""
        await self._actor.nudge.remote()
