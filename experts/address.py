"""Hosts and ports: joined, taken apart and listened on, and what it means when that fails. Knows no protocol."""

import errno
import random
import socket
from contextlib import ExitStack
from dataclasses import dataclass

from experts.errors import UserError

_QUIET_PORTS = range(20000, 30000)  # below what systems give out by themselves, above Ray's workers'
_TRIES = 64
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def bare(host: str) -> str:
    """A host without the brackets that URLs put around IPv6 addresses."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def joined(host: str, port: int) -> str:
    """HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def addresses(host: str) -> list[str]:
    """Every address that a host name stands for, or the address itself. Raises UserError."""
    try:
        found = socket.getaddrinfo(host or "\0", 0, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        why = f" ({error.strerror})" if isinstance(error, OSError) else ""
        raise UserError(f"host {host!r}{why}", "an address or a name of this machine", "--host") from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def one_address(host: str) -> str:
    """For a server that listens on one: of a name with both families an IPv4 address. Raises UserError."""
    found = addresses(host)
    return next((address for address in found if ":" not in address), found[0])


@dataclass(frozen=True, slots=True)
class Listen:
    """Where a server is to listen.

    host: an address or a name, without brackets
    port: 0 = any free one
    """

    host: str
    port: int


def listeners(where: Listen, flag: str) -> list[socket.socket]:
    """Sockets bound to all of a host's addresses that this machine has, on one port. Raises UserError.

    flag: the option that the port is from.
    """
    host, port = where.host, where.port
    with ExitStack() as opened:
        bound: list[socket.socket] = []
        missing: OSError | None = None
        for address in addresses(host):
            try:
                sock = opened.enter_context(_bound(address, bound[0].getsockname()[1] if bound else port))
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise _refused(error, host, port, flag) from None
                missing = error
            else:
                bound.append(sock)
        if not bound:
            assert missing is not None, f"{host} has addresses"
            raise _refused(missing, host, port, flag)
        opened.pop_all()
        return bound


def check_port(where: Listen, flag: str) -> None:
    """Raise UserError, saying why, when nobody can listen there."""
    for sock in listeners(where, flag):
        sock.close()


def free_port(host: str) -> int:
    """A port that nobody listens on now at any of a host's addresses, for a program that binds it later: none of those
    that the system gives to connections and listeners meanwhile. Raises UserError when there is none."""
    for port in random.sample(_QUIET_PORTS, _TRIES):
        try:
            bound = listeners(Listen(host, port), "port")
        except UserError as error:
            refused = error
            continue
        for sock in bound:
            sock.close()
        return port
    raise refused


def _bound(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _refused(error: OSError, host: str, port: int, flag: str) -> UserError:
    where = f"{flag} on {host}"
    if error.errno == errno.EADDRINUSE:
        return UserError(f"port {port} in use", "a free port", where)
    if error.errno in (errno.EACCES, errno.EPERM):
        return UserError(f"port {port}, which this user may not open", "a port above 1023", where)
    if error.errno in _NOT_HERE:
        return UserError(f"host {host!r}, which is not here", "an address of this machine", "--host")
    return UserError(f"port {port}: {error.strerror}", "a port to listen on", where)
