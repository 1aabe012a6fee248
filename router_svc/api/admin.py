"""What the Admin service and /metrics ask of whoever runs the ranks."""

from typing import Any, Protocol

from experts.placement import Placement


class AdminBackend(Protocol):
    """The cluster as an ingress sees it."""

    async def status(self) -> dict[str, Any]:
        """The object that `tokenyard status --json` prints."""

    async def placement(self) -> Placement:
        """The placement in use."""

    async def metrics(self, ingress_page: str) -> str:
        """Prometheus text of the whole cluster, given the asking ingress's own."""
