"""Work for a client that may go away meanwhile."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from experts.background import join_task
from router_svc.api.calls import ApiError
from router_svc.request import Code

T = TypeVar("T")


async def unless_gone(receive: Receive, wanted: Coroutine[Any, Any, T]) -> T:
    """What `wanted` gives; if the client goes away first, it is broken off. Raises ApiError then."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            continue

    work, leave = join_task("answer", wanted), join_task("client", gone())
    try:
        await asyncio.wait([work, leave], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ApiError(Code.CANCELLED, "the client went away")
        return work.result()
    finally:
        for task in (work, leave):
            task.cancel()
        await asyncio.gather(work, leave, return_exceptions=True)
