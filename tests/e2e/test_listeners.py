"""What a running `serve` listens on: nothing beyond loopback unless told to, whoever of its processes opens the port."""

import ipaddress
import signal

import psutil

from tests.serving import end, serving


def addresses(pid: int) -> dict[str, str]:
    """Every address that a process tree listens on, and the process that does."""
    found = {}
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                found[f"{connection.laddr.ip} port {connection.laddr.port}"] = " ".join(process.cmdline())[:60]
    return found


def is_loopback(place: str) -> bool:
    address = ipaddress.ip_address(place.split()[0])
    mapped = getattr(address, "ipv4_mapped", None)  # as a dual-stack socket shows IPv4
    return (mapped or address).is_loopback


def test_everything_listens_on_loopback() -> None:
    with serving() as (process, _, _):
        found = addresses(process.pid)
        assert len(found) > 10, "gcs, raylet, agents, doors, links and exchanges all listen"
        assert not {place: who for place, who in found.items() if not is_loopback(place)}
        end(process, signal.SIGTERM)
