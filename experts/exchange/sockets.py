"""Finding a gloo group's TCP connections among this process's, to cut them. Linux only; elsewhere finds none.

Gloo has no call that ends its operations, and its destructor waits for them; a socket that is shut down
ends them at both ends within milliseconds.
"""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

_OPEN_FILES = Path("/proc/self/fd")


def listening_ports() -> set[int]:
    """Ports that this process listens on."""
    ports = set()
    for one in _inet_sockets():
        with one:
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                ports.add(one.getsockname()[1])
    return ports


def cut_connections(own_port: int, peer_ports: set[int]) -> int:
    """Shut down every connection accepted on `own_port` or made to one of `peer_ports`; how many there were."""
    cut = 0
    for one in _inet_sockets():
        with one:
            try:
                peer = one.getpeername()  # a listener has none, and gloo ends the process if one is shut down
                if one.getsockname()[1] == own_port or peer[1] in peer_ports:
                    one.shutdown(socket.SHUT_RDWR)
                    cut += 1
            except OSError:
                continue  # a listener, or closed by the other side meanwhile
    return cut


def _inet_sockets() -> Iterator[socket.socket]:
    """Duplicates of this process's IP sockets; the caller closes each, which leaves the original open."""
    if not _OPEN_FILES.is_dir():
        return
    for name in os.listdir(_OPEN_FILES):
        try:
            if not stat.S_ISSOCK(os.stat(_OPEN_FILES / name).st_mode):
                continue
            copy = os.dup(int(name))
        except OSError:
            continue  # closed since it was listed
        one = socket.socket(fileno=copy)
        if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
            yield one
        else:
            one.close()
