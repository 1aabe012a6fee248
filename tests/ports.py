"""Ports of this machine for tests."""

import socket


def free_port(host: str = "127.0.0.1") -> int:
    """One that nobody listens on now."""
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        return int(probe.getsockname()[1])
