"""x-request-id in one process, as Ray Serve's proxy has it: an answer carries its request's, or a new one."""

import secrets

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADER = "x-request-id"


class RequestIds:
    """ASGI middleware. The app finds the id among its request's headers, the client's or a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = MutableHeaders(scope=scope)
        chosen = headers.setdefault(_HEADER, secrets.token_hex(16))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[_HEADER] = chosen
            await send(message)

        await self._app(scope, receive, send_with_id)
