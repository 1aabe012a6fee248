"""What the processes of a running `serve` listen on, nothing beyond loopback unless asked to; and their niceness."""

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


def test_everything_listens_on_loopback_and_is_as_nice_as_the_server() -> None:
    with serving() as (process, _, _):
        found = addresses(process.pid)
        assert len(found) > 10, "gcs, raylet, agents, doors, links and exchanges all listen"
        assert not {place: who for place, who in found.items() if not is_loopback(place)}
        server = psutil.Process(process.pid)
        family = server.children(recursive=True)
        nicer = [p.name() for p in family if p.nice() != server.nice()]
        assert not nicer, "beside a busy program, processes of a higher niceness get next to nothing"
        end(process, signal.SIGTERM)
