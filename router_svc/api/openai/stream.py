"""A stream of server-sent events on the wire: when its head goes out, what keeps it alive, what ends it."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from experts.background import join_task
from router_svc.api.calls import ApiError
from router_svc.api.openai.answers import api_error_object, error_object
from router_svc.api.openai.gone import unless_gone

log = logging.getLogger(__name__)
FIRST_COMMENT = 5.0  # s without an event until a comment goes out, before the first one with the head
NEXT_COMMENT = 15.0  # s between further comments; proxies close what is silent for 30 to 60 s
# Without a blank line, which would make some clients dispatch an event without data.
_COMMENT = b": waiting for the next token\n"
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")  # of str.splitlines and JavaScript, and not escaped by json


def sse(value: dict[str, Any]) -> bytes:
    """An event with this data, in one line for every client, whatever it takes for a line's end."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + _LINE_ENDS.sub(lambda end: f"\\u{ord(end[0]):04x}", text).encode() + b"\n\n"


class EventStream(Response):
    """Sends events as they come, with comments while none comes.

    The head goes out with the first event or comment, so that a refusal known before has its own status; what goes wrong
    later is an event of its own and the end. A client that goes away ends the work.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], headers: dict[str, str]) -> None:
        super().__init__(headers={**headers, "cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wire = _Wire(self, send)
        try:
            await unless_gone(receive, self._write(wire))
        except ApiError:
            if not wire.opened:
                raise

    async def _write(self, wire: "_Wire") -> None:
        comments = join_task("comments", wire.comment_while_silent())
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    await wire.write(event)
        except ApiError as error:
            if not wire.opened:
                raise
            await wire.write(sse(api_error_object(error)))
        except Exception:
            if not wire.opened:
                raise
            log.exception("a stream failed")
            await wire.write(sse(error_object("the server failed on this call; its log says why", 500)))
        finally:
            comments.cancel()
            await asyncio.gather(comments, return_exceptions=True)
        await wire.end()


class _Wire:
    """What one stream writes, by two tasks. opened: whether the head is on its way."""

    def __init__(self, response: Response, send: Send) -> None:
        self._response, self._send = response, send
        self._turn = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time() + FIRST_COMMENT
        self.opened = False

    async def write(self, data: bytes) -> None:
        await self._put(data)
        self._due = self._loop.time() + FIRST_COMMENT

    async def comment_while_silent(self) -> None:
        while True:
            left = self._due - self._loop.time()
            if left > 0:
                await asyncio.sleep(left)
            else:
                await self._put(_COMMENT)
                self._due = max(self._due, self._loop.time() + NEXT_COMMENT)

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _put(self, data: bytes) -> None:
        async with self._turn:
            if not self.opened:
                self.opened = True
                head = {"status": self._response.status_code, "headers": self._response.raw_headers}
                await self._send({"type": "http.response.start", **head})
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
