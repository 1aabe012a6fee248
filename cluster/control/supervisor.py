"""The supervisor: a Ray actor without a rank. Holds a cell, watches the doors, and answers for the whole cluster."""

import asyncio
import time
from functools import partial
from typing import Any

from cluster.control.cell import Cell
from cluster.control.doors import Doors
from cluster.control.orders import Orders, on_ray
from cluster.control.rebalance import Counted
from cluster.state.events import EventLog
from cluster.watch.dumps import dumps_of_doors
from cluster.watch.metrics import merge_pages, process_page, rank_metrics
from cluster.watch.recorder import RecordingEnd
from cluster.watch.status import StatusBook
from experts.dump import ProcessDump, dump_here
from experts.placement import Placement
from experts.worker import remote
from experts.worker.host import WorkerHost
from router_svc.ingress.door import Door
from router_svc.ingress.ingress import IngressOrder
from router_svc.link.client import LinkAddress


class Supervisor:
    """See the module. Every `async def` is a verb; none blocks the event loop."""

    def __init__(self, orders: Orders, namespace: str, log_dir: str) -> None:
        plan = orders.plan
        self._listen = plan.config.listen_grpc
        self._state_changed = asyncio.Condition()
        self._events = EventLog()
        self._cell = Cell(orders, on_ray(orders, namespace), self._events, self._tell, log_dir)
        self._book = StatusBook(plan.name, plan.placement.slots_per_rank)
        self._doors = Doors(
            self._listen, partial(remote.this_actor, Supervisor), partial(self._cell.notice, "door"), self._events
        )

    async def start(self) -> None:
        """Start all ranks, load them at once, and build the first epoch."""
        await self._cell.start()

    async def progress(self) -> dict[int, tuple[int, int]]:
        """Bytes loaded and in all, of each rank that answers."""
        return await self._cell.progress()

    async def links(self) -> tuple[str, list[LinkAddress]]:
        """(secret, where attention ranks listen)."""
        return self._cell.secret, self._cell.links()

    async def watch(self, known: int) -> tuple[int, str, str]:
        """(version, state, reason), as soon as the version is not `known`."""
        life = self._cell.life
        async with self._state_changed:
            await self._state_changed.wait_for(lambda: life.version != known)
            return life.version, life.state, life.reason

    async def status(self, events: bool = False) -> dict[str, Any]:
        """The object of `status --json`; events: with the event log."""
        cell, views = self._cell, await self._cell.views()
        life = cell.life
        found = self._book.status(views, life.epoch, cell.placement, life.state, life.reason, cell.balancer_view)
        return found | ({"events": self._events.entries()} if events else {})

    async def dump(self) -> list[ProcessDump]:
        """What every process of the cluster is doing, this one first."""
        ranks, doors = await asyncio.gather(self._cell.dumps(), dumps_of_doors(self._doors.named))
        return [dump_here("supervisor"), *ranks, *doors]

    async def placement(self) -> Placement:
        """The placement in use."""
        return self._cell.placement

    async def rebalance(self, dry_run: bool) -> dict[str, Any]:
        """Plan now, and move unless `dry_run`: the fields of RebalanceResponse. Raises UserError."""
        decision = await self._cell.rebalance(dry_run)
        return {
            "placement_version": self._cell.placement.version, "moves": decision.moves,
            "excess_before": decision.before, "excess_after": decision.after, "transfer_seconds": decision.cost,
            "text": decision.text,
        }  # fmt: skip

    async def release(self, rank: int) -> None:
        """Have a rank with experts leave while steps run. Raises UserError when the others can't take what it holds."""
        await self._cell.release(rank)

    async def admit(self, rank: int) -> None:
        """Start a process on a vacant seat with experts and take it in while steps run. Raises UserError."""
        await self._cell.admit(rank)

    async def counted(self) -> list[Counted]:
        """The newest steps."""
        return await self._cell.counted()

    async def source(self) -> WorkerHost:
        """The first rank that brings tokens."""
        return self._cell.roster.bringers[0].port

    async def add_door(self, door: Door, order: IngressOrder, port: int) -> None:
        """Watch a door, by its port to us, that listens on `port`, and put its metrics on the cluster's page."""
        self._doors.add(door, order, port)
        await self.note("door", f"gRPC listens on {self._listen.host}:{port}")

    async def note(self, kind: str, text: str) -> None:
        """Put into the event log what happened elsewhere."""
        self._events.add(time.time(), kind, text)

    async def metrics(self, ingress_page: str) -> str:
        """Prometheus text of the whole cluster: an ingress's own page, the doors' and the ranks'."""
        cell, views = self._cell, await self._cell.views()
        ranks = rank_metrics(views, self._book, cell.placement, cell.balancer_view)
        own = process_page("supervisor", views, self._book.model)
        return merge_pages([ingress_page, *await self._doors.pages(), own]) + ranks

    async def stop(self, grace: float = 0.0) -> RecordingEnd:
        """Have ingresses see requests out for `grace` seconds, end the step loops together, then the ranks' processes.

        How the recording ended is returned.
        """
        recorded = await self._cell.stop(grace)
        self._doors.stop_watching()
        for seat in self._cell.roster:
            remote.kill(seat.port)
        return recorded

    async def _tell(self) -> None:
        async with self._state_changed:
            self._state_changed.notify_all()
