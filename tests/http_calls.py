"""Plain HTTP calls to a running server: statuses, headers and bodies as they are, redirects not followed."""

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from tests.patience import PATIENCE
from tests.server import RunningServer


@contextmanager
def sent(server: RunningServer, path: str, value: Any) -> Iterator[http.client.HTTPConnection]:
    """A connection on which a POST is on its way; it closes at the block's end."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=PATIENCE)
    try:
        connection.request("POST", path, json.dumps(value))
        yield connection
    finally:
        connection.close()


@contextmanager
def opened(server: RunningServer, path: str, value: Any) -> Iterator[http.client.HTTPResponse]:
    """The answer to a POST, once its head is there; its connection closes at the block's end."""
    with sent(server, path, value) as connection:
        yield connection.getresponse()


def send(
    server: RunningServer, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, Any, Any]:
    """(status, body, headers); the body is parsed where it is JSON."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=PATIENCE)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        raw = answer.read()
        kind = answer.headers.get("content-type", "")
        return answer.status, json.loads(raw) if "json" in kind else raw.decode(), answer.headers
    finally:
        connection.close()


def post(server: RunningServer, path: str, value: Any) -> tuple[int, Any, Any]:
    """The same for a POST of JSON."""
    return send(server, "POST", path, json.dumps(value).encode())
