"""What an ingress process (door or Serve replica) is made of: text, links to attention ranks, the supervisor's word."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from experts.background import end_process, only_log, watch_task
from experts.dump import ProcessDump, dump_here
from experts.placement import Placement
from experts.worker.remote import Gone
from router_svc.api.calls import ApiError, ModelInfo
from router_svc.api.limits import ServiceLimits
from router_svc.api.metrics import IngressMetrics
from router_svc.api.service import Service, TextStack
from router_svc.link.client import LinkAddress, LinkEngines
from router_svc.models.spec import ModelSpec
from router_svc.request import Code

log = logging.getLogger(__name__)
T = TypeVar("T")
_NO_SUPERVISOR = "the supervisor is gone; start the server again"
_PAUSE = 1.0  # s before the state is asked for again, after a call that failed


@dataclass(frozen=True, slots=True)
class IngressOrder:
    """What an ingress loads.

    grace: seconds that running requests have once the cluster stops
    origins: of web pages that may call over HTTP
    strict_fields: HTTP bodies with unknown fields are refused
    template: a chat template's file in place of the folder's
    """

    folder: Path
    spec: ModelSpec
    reasoning: str
    limits: ServiceLimits
    info: ModelInfo
    grace: float
    origins: tuple[str, ...] = ()
    strict_fields: bool = False
    template: Path | None = None


class SupervisorVerbs(Protocol):
    """What an ingress asks of the supervisor; see its own docstrings."""

    async def links(self) -> tuple[str, list[LinkAddress]]: ...
    async def watch(self, known: int) -> tuple[int, str, str]: ...
    async def status(self, events: bool = False) -> dict[str, Any]: ...
    async def rebalance(self, dry_run: bool) -> dict[str, Any]: ...
    async def placement(self) -> Placement: ...
    async def dump(self) -> list[ProcessDump]: ...
    async def metrics(self, ingress_page: str) -> str: ...


class SupervisorBackend:
    """AdminBackend over the supervisor's port."""

    def __init__(self, supervisor: SupervisorVerbs) -> None:
        self._supervisor = supervisor

    async def status(self, events: bool = False) -> dict[str, Any]:
        return await _answer(self._supervisor.status(events))

    async def rebalance(self, dry_run: bool) -> dict[str, Any]:
        return await _answer(self._supervisor.rebalance(dry_run))

    async def placement(self) -> Placement:
        return await _answer(self._supervisor.placement())

    async def dump(self) -> list[ProcessDump]:
        """With a supervisor that does not answer, this process alone."""
        own = "the process that was asked"
        try:
            return await _answer(self._supervisor.dump())
        except TimeoutError as error:
            return [dump_here(own), ProcessDump("supervisor", 0, str(error))]
        except ApiError as error:
            return [dump_here(own), ProcessDump("supervisor", 0, error.message)]

    async def metrics(self, ingress_page: str) -> str:
        return await _answer(self._supervisor.metrics(ingress_page))


async def _answer(call: Awaitable[T]) -> T:
    try:
        return await call
    except Gone:
        raise ApiError(Code.UNAVAILABLE, _NO_SUPERVISOR) from None


class Ingress:
    """A Service over links, kept up to date with the cluster's state."""

    def __init__(self, order: IngressOrder, supervisor: SupervisorVerbs) -> None:
        self._order = order
        self._supervisor = supervisor
        self.admin = SupervisorBackend(supervisor)
        self.service: Service | None = None
        self._following: asyncio.Task[None] | None = None

    async def start(self, also: Callable[[str], Awaitable[None]] | None = None) -> Service:
        """Connect and follow the state; `also` gets every state too."""
        order = self._order
        text = await asyncio.to_thread(TextStack.load, order.folder, order.spec, order.reasoning, order.template)
        secret, addresses = await self._supervisor.links()
        engines = LinkEngines(secret)
        await engines.connect(addresses)
        self.service = Service(text, engines, order.limits, order.info, IngressMetrics(order.info.name))
        version = await self._look(-1, engines, also)  # the first request must not find "starting"
        work = self._follow(version, engines, also)
        # An ingress that does not know the state serves nobody; Ray starts another process.
        self._following = watch_task("state of the cluster", work, end_process, returns=True)
        return self.service

    async def _follow(self, version: int, engines: LinkEngines, also: Callable[[str], Awaitable[None]] | None) -> None:
        """For as long as there is a supervisor."""
        while version >= 0:
            try:
                version = await self._look(version, engines, also)
            except Exception:  # one bad answer is no reason to be blind from then on
                log.exception("the cluster's state could not be read")
                await asyncio.sleep(_PAUSE)

    async def _look(self, known: int, engines: LinkEngines, also: Callable[[str], Awaitable[None]] | None) -> int:
        """Show the cluster's state once its version is not `known`; the version, -1 without a supervisor."""
        try:
            version, state, reason = await self._supervisor.watch(known)
        except Gone:
            version, state, reason = -1, "degraded", _NO_SUPERVISOR
        engines.show_state(state, reason)
        if state == "stopping" and self.service is not None:
            watch_task("drain", self.service.drain(self._order.grace), only_log, returns=True)
        if also is not None:
            await also(state)
        return int(version)
