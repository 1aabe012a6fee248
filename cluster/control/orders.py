"""From a plan to its ranks: what each one loads, and how its process is started."""

from collections.abc import Callable
from dataclasses import dataclass

from cluster.balance.cost import split_policy
from cluster.plan import ServePlan
from experts.epoch.membership import Member
from experts.exchange.split import SplitPolicy
from experts.machine import cores
from experts.placement import Placement
from experts.worker import remote
from experts.worker.host import WorkerHost, WorkerProcess
from experts.worker.worker import Worker, WorkerOrder
from router_svc.worker import AttentionOrder, Deliver

Spawn = Callable[[WorkerOrder], WorkerHost]  # starts a rank; it loads nothing yet


@dataclass(frozen=True)
class Orders:
    """What the ranks of a plan load. Crosses processes; simulations have one of their own."""

    plan: ServePlan

    @property
    def policy(self) -> SplitPolicy:
        """The split's policy before anything is known of the ranks' speeds."""
        return split_policy(self.plan.device)

    @property
    def least_pairs(self) -> int:
        """Routed tokens of a layer that make a row of the load's history."""
        return 8 * self.plan.spec.experts.experts

    def of(self, seat: Member, secret: str, placement: Placement, policy: SplitPolicy) -> WorkerOrder:
        """One rank's.

        placement, policy: as the other ranks have them by now
        """
        plan = self.plan
        common = WorkerOrder(
            seat=seat, folder=plan.folder, spec=plan.spec.experts, placement=placement, dtype=plan.dtype,
            device=plan.device, threads=self._threads(seat), budget=plan.engine.max_num_batched_tokens, secret=secret,
            policy=policy, exchange=plan.exchange,
        )  # fmt: skip
        return self.attention(common) if seat.runs_attention else self.experts(common)

    def attention(self, common: WorkerOrder) -> WorkerOrder:
        """Of a rank that brings tokens."""
        return AttentionOrder(**vars(common), model=self.plan.spec, engine=self.plan.engine)

    def experts(self, common: WorkerOrder) -> WorkerOrder:
        """Of a rank that only holds experts."""
        return common

    def process(self, order: WorkerOrder) -> type[WorkerProcess]:
        """The class of a rank's process."""
        return WorkerProcess

    def _threads(self, seat: Member) -> int:
        """Experts work at the same time and divide the cores; attention works while they wait and divides them again."""
        peers = [s for s in self.plan.seats if s.runs_attention == seat.runs_attention]
        return max(1, min(cores() // len(peers), self.plan.most_threads))


def on_ray(orders: Orders, namespace: str) -> Spawn:
    """Start ranks as Ray actors of `namespace`. They take no CPU resource: they share the cores by turns."""

    def spawn(order: WorkerOrder) -> WorkerHost:
        seat = order.seat
        return remote.start(
            orders.process(order),
            order,
            options={
                "name": f"rank-{seat.rank}" + (f"-{seat.incarnation}" if seat.incarnation else ""),
                "namespace": namespace,
                "lifetime": "detached",
                "num_cpus": 0,
                "max_concurrency": 64,
                "num_gpus": 1 if order.device == "cuda" else 0,
            },
        )

    return spawn


def in_process(order: WorkerOrder) -> WorkerHost:
    """A rank in the calling process, beside its event loop."""
    return remote.here(WorkerHost(order))


def local_worker(port: WorkerHost) -> Worker:
    """The worker of a rank in this process."""
    return remote.target(port).worker


@dataclass(frozen=True)
class LocalOrders(Orders):
    """Of a plan with one rank, which holds all experts. deliver: takes its events."""

    deliver: Deliver

    def attention(self, common: WorkerOrder) -> WorkerOrder:
        return AttentionOrder(**vars(common), model=self.plan.spec, engine=self.plan.engine, deliver=self.deliver)
