"""Which Ray to start or to join, from --ray-address and RAY_ADDRESS. Knows no Ray, so that a wrong one is said at once."""

import socket
from dataclasses import dataclass

from cluster.serve.notes import say
from experts.address import bare
from experts.env import ray_address
from experts.errors import UserError

_KNOCK = 5.0  # s for the port of a Ray to be there


@dataclass(frozen=True, slots=True)
class RayAddress:
    """text: HOST:PORT or auto
    source: who names it
    """

    text: str
    source: str


def wanted(flag: str | None) -> RayAddress | None:
    """The Ray to join, None for a private one. Raises UserError for an address that is none."""
    text, source = (flag, "--ray-address") if flag is not None else (ray_address(), "RAY_ADDRESS")
    if text is None or text == "local":
        return None
    if text != "auto":
        _parts(text, source)
    return RayAddress(text, source)


def announce(flag: str | None) -> None:
    """Say which Ray will be joined, if any, and look whether anybody listens there. Raises UserError."""
    address = wanted(flag)
    if address is None:
        return
    say(f"tokenyard: joining the Ray at {address.text} ({address.source})")
    if address.text == "auto":
        return
    try:
        socket.create_connection(_parts(address.text, address.source), _KNOCK).close()
    except OSError as error:
        raise nobody(address, error.strerror or str(error)) from None


def nobody(address: RayAddress, why: str) -> UserError:
    """The error for an address where no Ray is."""
    way_out = "local for a private one" if address.source == "--ray-address" else "unset it for a private one"
    return UserError(f"no Ray at {address.text} ({why})", f"a running Ray, or {way_out}", address.source)


def _parts(text: str, source: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if "://" in text or not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(repr(text), "HOST:PORT of a Ray's head, auto or local", source)
    return bare(host), int(port)
