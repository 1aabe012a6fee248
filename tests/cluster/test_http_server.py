"""HTTP in one process: silent connections, and a process that runs out of file descriptors."""

import asyncio
import http.client
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.types import Receive, Scope, Send

from cluster.limits import raise_file_limit
from cluster.serve.http_server import KEEP_ALIVE, HttpServer
from experts.address import Listen
from tests.patience import PATIENCE, wait_until

FILES = 40
_SERVER = """
import asyncio
from cluster.serve.http_server import HttpServer
from experts.address import Listen
from tests.cluster.test_http_server import app
async def main():
    server = HttpServer(app, Listen("127.0.0.1", 0))
    await server.start(print)
    print(server.port, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers after as many seconds as the path says."""
    await asyncio.sleep(float(scope["path"].strip("/") or 0))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def connected(server: HttpServer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def test_who_sends_no_request_is_closed_and_who_waits_for_an_answer_is_not() -> None:
    server = HttpServer(app, Listen("127.0.0.1", 0), request_seconds=0.3)
    await server.start(lambda what: pytest.fail(what))
    try:
        for sent in (b"", b"GET / HTTP/1.1\r\nhost: x\r\n"):
            async with connected(server) as (reader, writer):
                writer.write(sent)
                assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        async with connected(server) as (reader, writer):
            for path in (b"/1", b"/0"):  # on one connection
                writer.write(b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n\r\n")
                assert (await asyncio.wait_for(reader.readuntil(b"ok"), PATIENCE)).startswith(b"HTTP/1.1 200")
            writer.write(b"GET / HT")
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
    finally:
        await server.stop()


async def test_who_had_an_answer_has_the_keep_alive_time_for_the_next_request() -> None:
    assert KEEP_ALIVE >= 75, "load balancers keep connections so long"
    server = HttpServer(app, Listen("127.0.0.1", 0), request_seconds=PATIENCE, keep_alive=1)
    await server.start(lambda what: pytest.fail(what))
    try:
        async with connected(server) as (reader, writer):
            writer.write(b"GET /0 HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await asyncio.wait_for(reader.read(), PATIENCE)).endswith(b"ok")  # and then its end
    finally:
        await server.stop()


@pytest.mark.parametrize("sent", [{}, {"x-request-id": "mine-7"}])
async def test_an_answer_carries_its_requests_id_or_a_new_one(sent: dict[str, str]) -> None:
    seen: list[str] = []

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(dict(scope["headers"])[b"x-request-id"].decode())
        await app(scope, receive, send)

    server = HttpServer(note, Listen("127.0.0.1", 0))
    await server.start(lambda what: pytest.fail(what))
    try:

        def ask() -> list[str]:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
            connection.request("GET", "/0", headers=sent)
            found = connection.getresponse().headers.get_all("x-request-id") or []
            connection.close()
            return found

        got = [await asyncio.to_thread(ask) for _ in range(2)]
    finally:
        await server.stop()
    assert [[one] for one in seen] == got
    assert len(set(seen)) == (1 if sent else 2)
    assert seen[0] == sent.get("x-request-id", seen[0])


def test_connections_that_wait_for_their_next_request_make_room() -> None:
    process, port = started()
    idle = []
    try:
        for _ in range(2 * FILES):  # more than there are descriptors: the older ones are closed for the newer ones
            idle.append(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE))
            idle[-1].request("GET", "/")
            assert idle[-1].getresponse().read() == b"ok"
    finally:
        process.kill()
        process.communicate()
        for connection in idle:
            connection.close()


def started() -> tuple[subprocess.Popen[str], int]:
    """A server that may open FILES files, and its port."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES)),
    )  # fmt: skip
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_without_file_descriptors_it_says_so_in_a_line_and_comes_back() -> None:
    process, port = started()
    try:
        silent = [socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(2 * FILES)]
        assert process.stderr is not None
        assert "no new connections for now: Too many open files" in process.stderr.readline()
        for client in silent:
            client.close()

        def answers() -> bool:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            try:
                connection.request("GET", "/")
                return connection.getresponse().status == 200
            except OSError:
                return False
            finally:
                connection.close()

        wait_until(answers, "an answer")
    finally:
        process.kill()
        _, errors = process.communicate()
    assert "Traceback" not in errors
    assert len(errors.splitlines()) < PATIENCE


def test_the_soft_limit_of_files_is_raised_to_the_hard_one() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] - 1, before[1]))
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
