"""What the Admin service and /metrics ask of the side that runs the ranks."""

from typing import Any, Protocol

from experts.dump import ProcessDump
from experts.placement import Placement


class AdminBackend(Protocol):
    """The cluster as an ingress sees it."""

    async def status(self, events: bool = False) -> dict[str, Any]:
        """The object that `tokenyard status --json` prints; events: with the event log."""

    async def placement(self) -> Placement:
        """The placement in use."""

    async def rebalance(self, dry_run: bool) -> dict[str, Any]:
        """Plan now, and move unless `dry_run`: the fields of RebalanceResponse. Raises UserError when there is nothing
        to balance or to plan from."""

    async def dump(self) -> list[ProcessDump]:
        """What every process is doing."""

    async def metrics(self, ingress_page: str) -> str:
        """Prometheus text of the whole cluster, given the asking ingress's own."""
