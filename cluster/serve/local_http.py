"""HTTP calls to our own server on this machine: never through a proxy, whatever the environment says."""

import urllib.request
from http.client import HTTPResponse
from typing import cast

from experts.address import Listen, joined

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_ANY = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # an address to listen on, and one to call


def url(listen: Listen, path: str) -> str:
    """Where a server that listens there is called from this machine."""
    return f"http://{joined(_ANY.get(listen.host, listen.host), listen.port)}{path}"


def call(request: urllib.request.Request | str, seconds: float) -> HTTPResponse:
    """The answer, to be closed. Raises OSError."""
    return cast(HTTPResponse, _OPENER.open(request, timeout=seconds))
