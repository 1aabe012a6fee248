"""The hello: each end proves that it knows the secret, for this connection and in its own part, or nothing follows."""

import asyncio
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experts.hello import (
    Calling,
    Listening,
    Party,
    Stranger,
    Unfinished,
    answer,
    answer_stream,
    call,
    call_stream,
)
from tests.patience import PATIENCE

CALLER, LISTENER = Party("trial", 3), Party("trial", 3, rank=4, incarnation=2)


def meet(calling: tuple[str, Party], listening: tuple[str, Party]) -> tuple[Party | Exception, Party | Exception]:
    """What each end of a real connection found."""
    left, right = socket.socketpair()

    def end(link: socket.socket, how: object, who: tuple[str, Party]) -> Party | Exception:
        try:
            return how(link, *who, PATIENCE)  # type: ignore[operator,no-any-return]
        except OSError as error:
            return error
        finally:
            link.close()

    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(end, left, call, calling)
        other = threads.submit(end, right, answer, listening)
        return one.result(PATIENCE), other.result(PATIENCE)


def body(message: bytes) -> bytes:
    """A message without its length."""
    return message[4:]


def test_both_ends_learn_who_is_there() -> None:
    assert meet(("s", CALLER), ("s", LISTENER)) == (LISTENER, CALLER)


@pytest.mark.parametrize(
    ("secret", "party", "caller_says", "listener_says"),
    [
        ("other", CALLER, "secret", "closed"),
        ("s", Party("else", 3), "'trial' in format 3, expected 'else' in format 3", "closed"),
        ("s", Party("trial", 2), "'trial' in format 3, expected 'trial' in format 2", "closed"),
    ],
)
def test_who_does_not_fit_is_refused(secret: str, party: Party, caller_says: str, listener_says: str) -> None:
    caller, listener = meet((secret, party), ("s", LISTENER))
    assert isinstance(caller, Stranger)
    assert caller_says in str(caller)
    assert isinstance(listener, Unfinished)
    assert listener_says in str(listener)


def test_the_secret_does_not_travel() -> None:
    caller, listener = Calling("a long secret", CALLER), Listening("a long secret", LISTENER)
    answered = listener.called(body(caller.message))
    _, proof = caller.answered(body(answered[:-32]), answered[-32:])
    assert b"a long secret" not in caller.message + answered + proof


def test_what_another_connection_saw_proves_nothing() -> None:
    caller, listener = Calling("s", CALLER), Listening("s", LISTENER)
    answered = listener.called(body(caller.message))
    _, proof = caller.answered(body(answered[:-32]), answered[-32:])
    assert listener.proven(proof) == CALLER
    later = Listening("s", LISTENER)
    later.called(body(caller.message))
    with pytest.raises(Stranger, match="secret"):
        later.proven(proof)
    with pytest.raises(Stranger, match="secret"):
        Calling("s", CALLER).answered(body(answered[:-32]), answered[-32:])


def test_ones_own_words_sent_back_prove_nothing() -> None:
    caller = Calling("s", CALLER)
    mirror = Listening("s", CALLER)  # a listener of the same kind, whose answers an attacker passes on
    answered = mirror.called(body(caller.message))
    with pytest.raises(Stranger, match="secret"):
        caller.answered(body(caller.message), answered[-32:])
    with pytest.raises(Stranger, match="secret"):
        mirror.proven(answered[-32:])


def test_a_changed_seat_is_noticed() -> None:
    caller, listener = Calling("s", CALLER), Listening("s", LISTENER)
    answered = listener.called(body(caller.message))
    changed = body(answered[:-32]).replace(b"trial\x03\x04", b"trial\x03\x05")
    assert changed != body(answered[:-32])
    with pytest.raises(Stranger, match="secret"):
        caller.answered(changed, answered[-32:])


def test_who_is_here_for_something_else_is_not_taken_though_it_knows_the_secret() -> None:
    caller, listener = Calling("s", Party("else", 3)), Listening("s", LISTENER)
    answered = listener.called(body(caller.message))
    with pytest.raises(Stranger, match="'else' in format 3, expected 'trial' in format 3"):
        listener.proven(caller.proof(b"caller", caller.message, answered[:-32]))


@given(st.binary(max_size=80))
def test_bytes_that_are_no_hello_are_refused(data: bytes) -> None:
    with pytest.raises(Stranger, match="no hello"):
        Listening("s", LISTENER).called(data)


def test_a_message_that_is_too_long_is_not_read() -> None:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(b"\x00\x00\x10\x01")
        with pytest.raises(Stranger, match="4097 bytes"):
            answer(right, "s", LISTENER, PATIENCE)


def test_who_is_silent_or_sends_byte_by_byte_is_waited_for_only_so_long() -> None:
    left, right = socket.socketpair()
    with left, right:
        right.settimeout(77.0)
        over = threading.Event()

        def drip() -> None:
            while not over.wait(0.02):
                left.sendall(b"\x00")

        left.sendall(b"\x00\x00\x10\x00")
        thread = threading.Thread(target=drip)
        thread.start()
        try:
            with pytest.raises(TimeoutError):
                answer(right, "s", LISTENER, 0.3)
        finally:
            over.set()
            thread.join(PATIENCE)
        assert right.gettimeout() == 77.0


def test_a_caller_knows_that_it_was_taken() -> None:
    """A listener that lost patience before the proof came has closed: the caller must not believe itself connected."""
    left, right = socket.socketpair()

    def impatient() -> None:
        side = Listening("s", LISTENER)
        (length,) = struct.unpack(">I", right.recv(4))
        right.sendall(side.called(right.recv(length)))
        right.recv(32)
        right.close()

    thread = threading.Thread(target=impatient)
    thread.start()
    with left, pytest.raises(Unfinished):
        call(left, "s", CALLER, PATIENCE)
    thread.join(PATIENCE)


async def test_over_streams() -> None:
    found: list[object] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            found.append(await answer_stream(reader, writer, "s", LISTENER, 0.5))
            found.append(await reader.readexactly(4))
        except (Unfinished, TimeoutError) as error:
            found.append(type(error))
        writer.close()

    async def seen(count: int) -> list[object]:
        until = time.monotonic() + PATIENCE
        while len(found) < count and time.monotonic() < until:
            await asyncio.sleep(0.005)
        return found

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await call_stream(reader, writer, "s", CALLER, PATIENCE) == LISTENER
    writer.write(b"then")
    assert await seen(2) == [CALLER, b"then"]
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert (await seen(3))[2] is TimeoutError, "who says nothing is not waited for"
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with pytest.raises(Stranger, match="secret"):
        await call_stream(reader, writer, "other", CALLER, PATIENCE)
    writer.close()
    assert (await seen(4))[3] is Unfinished
    server.close()
