"""Waiting for the requests of a whole cluster to end, as its ranks see them."""

import asyncio
from collections.abc import Awaitable, Callable

from cluster.watch.status import RankView

_LOOK = 0.05  # s between looks at the ranks
_LATER = 1.0  # s that a rank may learn later than an ingress that a request is over


async def requests_end(views: Callable[[], Awaitable[list[RankView]]], grace: float) -> None:
    """Return once no rank runs a request. grace: seconds after which the ingresses end those that are left; 0 = no wait."""
    loop = asyncio.get_running_loop()
    until = loop.time() + grace + _LATER
    while grace and loop.time() < until:
        engines = [view.engine for view in await views() if view.engine is not None]
        if not any(engine.running or engine.waiting for engine in engines):
            return
        await asyncio.sleep(_LOOK)
