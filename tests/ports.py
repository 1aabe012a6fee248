"""Ports of this machine for tests."""

from experts import address


def free_port(host: str = "127.0.0.1") -> int:
    """One that nobody listens on now, and that the system gives nobody by itself."""
    return address.free_port(host)
