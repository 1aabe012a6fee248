"""From --target to a client, and what a call that failed means to the person who made it."""

import http.client
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.cli.lazy import load
from cluster.serve.notes import say
from experts.errors import UserError

_TARGET = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<name>[^\s:/\[\]]+)):(?P<port>[0-9]{1,5})")
_LOOK = 3.0  # s to find out what listens where a call failed


@contextmanager
def connect(target: str) -> Iterator[Any]:
    """A client for HOST:PORT. Raises UserError for another form and for a port of HTTP.

    A failed call becomes one line and an exit code: 2 for a refused argument, and for what this server can't do
    the way it was started; 1 for work that failed.
    """
    host, port = _parts(target)
    module = load("router_svc.client")
    with module.Client(target) as client:
        try:
            yield client
        except module.CallError as error:
            if error.code == "UNAVAILABLE":
                _look(host, port, target)
            say(f"tokenyard: {error}")
            sys.exit(2 if error.code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION") else 1)


def checked(text: str, where: str) -> str:
    """A text of the command line as UTF-8, whatever the locale says it is. Raises UserError where its bytes are none."""
    try:
        return os.fsencode(text).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"invalid UTF-8 at byte {error.start}", "UTF-8 text", where) from None


def _parts(target: str) -> tuple[str, int]:
    found = _TARGET.fullmatch(checked(target, "--target"))
    if found is None or not 0 < int(found["port"]) < 65536:
        raise UserError(repr(target), "HOST:PORT (an IPv6 address in brackets)", "--target")
    return found["v6"] or found["name"], int(found["port"])


def _look(host: str, port: int, target: str) -> None:
    """Say it if nobody listens there, or someone who speaks HTTP/1."""
    connection = http.client.HTTPConnection(host, port, timeout=_LOOK)
    try:
        connection.connect()
        connection.request("GET", "/version")
        connection.getresponse()
    except socket.gaierror as error:
        raise UserError(f"host {host!r} ({error.strerror})", "a host that can be found", "--target") from None
    except (ConnectionRefusedError, TimeoutError) as error:
        if isinstance(error, TimeoutError) and connection.sock is not None:
            return  # it listens, and is busy
        say(f"tokenyard: no tokenyard at {target}; start one with `tokenyard serve`")
        sys.exit(1)
    except (OSError, http.client.HTTPException):
        return  # gRPC's answer to what it does not speak
    finally:
        connection.close()
    raise UserError(f"{target}, an HTTP port", "the port of gRPC (--grpc-port, 50051 unless set)", "--target")
