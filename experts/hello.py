"""Hello: how two processes of a cluster make sure of each other before anything else travels on their connection.

Each proves that it knows the cluster's secret, which itself never travels:

    caller -> listener   who it is, its challenge
    listener -> caller   who it is, its challenge, its proof
    caller -> listener   its proof
    listener -> caller   one byte: taken

A proof is HMAC-SHA256 over the prover's side and both messages with both challenges (ISO/IEC 9798-4, three-pass mutual
authentication), so that what was seen on another connection, or one's own words sent back, prove nothing. What follows on
the connection is neither encrypted nor authenticated by it.
"""

import asyncio
import hmac
import secrets
import socket
import struct
import time
from dataclasses import dataclass

import msgpack

SECONDS = 2.0  # that a hello may take
MOST_BYTES = 4096  # of a message
PAUSE = 0.1  # s before a hello that was held up is tried again
_CHALLENGE, _PROOF = 32, 32  # bytes
_TAKEN = b"\x01"
_LENGTH = struct.Struct(">I")


class Stranger(ConnectionError):
    """Who is at the other end is not who was expected, or nobody that speaks this."""


class Unfinished(ConnectionError):
    """The other end closed the connection in the hello, as one does that has waited too long for this one."""


HELD_UP = (TimeoutError, Unfinished, ConnectionResetError, BrokenPipeError)  # a caller may try again


@dataclass(frozen=True, slots=True)
class Party:
    """What one end says of itself.

    purpose: what the connection is for
    format: of what travels on it then; both ends have the same
    rank, incarnation: its seat, -1 for a process without one
    sizes: of what travels, where the format leaves them open; both ends have the same
    """

    purpose: str
    format: int
    rank: int = -1
    incarnation: int = 0
    sizes: tuple[int, ...] = ()


class _Side:
    """One end of a hello, without its connection."""

    def __init__(self, secret: str, own: Party) -> None:
        self._secret, self._own = secret.encode(), own
        who = [own.purpose, own.format, own.rank, own.incarnation, own.sizes]
        said = msgpack.packb([*who, secrets.token_bytes(_CHALLENGE)])
        self.message: bytes = _LENGTH.pack(len(said)) + said

    def party(self, body: bytes) -> Party:
        """The other end, from its message. Raises Stranger for what is none."""
        try:
            purpose, form, rank, incarnation, sizes, challenge = msgpack.unpackb(body)
            kinds = [type(part) for part in (purpose, form, rank, incarnation, sizes, challenge, *sizes)]
            if kinds != [str, int, int, int, list, bytes, *[int] * len(sizes)] or len(challenge) != _CHALLENGE:
                raise ValueError(kinds)
        except (ValueError, TypeError, msgpack.UnpackException):
            raise Stranger(f"{len(body)} bytes that are no hello") from None
        return Party(purpose, form, rank, incarnation, tuple(sizes))

    def fits(self, party: Party) -> None:
        """Raises Stranger where the other end is here for something else."""
        own = self._own
        if (party.purpose, party.format) != (own.purpose, own.format):
            found = f"{party.purpose[:40]!r} in format {party.format}"
            raise Stranger(f"a hello for {found}, expected {own.purpose!r} in format {own.format}")
        if party.sizes != own.sizes:
            raise Stranger(f"a hello for {own.purpose!r} with sizes {party.sizes}, expected {own.sizes}")

    def proof(self, side: bytes, called: bytes, answered: bytes) -> bytes:
        """Of the end `side`; called, answered: both messages as they travelled."""
        return hmac.digest(self._secret, side + called + answered, "sha256")

    def check(self, proof: bytes, side: bytes, called: bytes, answered: bytes) -> None:
        """Raises Stranger where the proof is not that of `side`."""
        if not hmac.compare_digest(proof, self.proof(side, called, answered)):
            raise Stranger("the other end does not know this cluster's secret")


class Calling(_Side):
    """The caller's end: send `message`, read the answer and its proof, send what `answered` returns."""

    def answered(self, body: bytes, proof: bytes) -> tuple[Party, bytes]:
        """The listener, and the proof to send it. Raises Stranger."""
        answer = _LENGTH.pack(len(body)) + body
        party = self.party(body)
        self.check(proof, b"listener", self.message, answer)
        self.fits(party)
        return party, self.proof(b"caller", self.message, answer)


class Listening(_Side):
    """The listener's end: read a message, send what `called` returns, read the proof and give it to `proven`.

    Who is here for something else is answered, too, so that it can say what it found.
    """

    def called(self, body: bytes) -> bytes:
        """What to send back. Raises Stranger."""
        self._party, self._call = self.party(body), _LENGTH.pack(len(body)) + body
        return self.message + self.proof(b"listener", self._call, self.message)

    def proven(self, proof: bytes) -> Party:
        """The caller. Raises Stranger."""
        self.fits(self._party)
        self.check(proof, b"caller", self._call, self.message)
        return self._party


def call(link: socket.socket, secret: str, own: Party, seconds: float = SECONDS) -> Party:
    """Who answers a blocking connection, and has taken this end. Raises Stranger, HELD_UP, OSError.

    The socket's timeout is as before then.
    """
    with _Deadline(link, seconds) as timed:
        side = Calling(secret, own)
        timed.send(side.message)
        party, proof = side.answered(timed.message(), timed.exactly(_PROOF))
        timed.send(proof)
        timed.exactly(len(_TAKEN))
        return party


def answer(link: socket.socket, secret: str, own: Party, seconds: float = SECONDS) -> Party:
    """Who calls on a blocking connection. Raises Stranger, HELD_UP, OSError; the socket's timeout is as before then."""
    with _Deadline(link, seconds) as timed:
        side = Listening(secret, own)
        timed.send(side.called(timed.message()))
        party = side.proven(timed.exactly(_PROOF))
        timed.send(_TAKEN)
        return party


async def call_stream(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: str, own: Party, seconds: float = SECONDS
) -> Party:
    """As `call`, over asyncio's streams."""
    async with asyncio.timeout(seconds):
        side = Calling(secret, own)
        writer.write(side.message)
        party, proof = side.answered(await _message(reader), await _exactly(reader, _PROOF))
        writer.write(proof)
        await _exactly(reader, len(_TAKEN))
        return party


async def answer_stream(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: str, own: Party, seconds: float = SECONDS
) -> Party:
    """As `answer`, over asyncio's streams."""
    async with asyncio.timeout(seconds):
        side = Listening(secret, own)
        writer.write(side.called(await _message(reader)))
        party = side.proven(await _exactly(reader, _PROOF))
        writer.write(_TAKEN)
        return party


def _length(head: bytes) -> int:
    length: int = _LENGTH.unpack(head)[0]
    if length > MOST_BYTES:
        raise Stranger(f"a hello of {length} bytes, at most {MOST_BYTES} are taken")
    return length


async def _message(reader: asyncio.StreamReader) -> bytes:
    return await _exactly(reader, _length(await _exactly(reader, _LENGTH.size)))


async def _exactly(reader: asyncio.StreamReader, count: int) -> bytes:
    try:
        return await reader.readexactly(count)
    except asyncio.IncompleteReadError:
        raise Unfinished("the other end closed the connection in the hello") from None


class _Deadline:
    """A blocking socket until a deadline, however many bytes come one by one."""

    def __init__(self, link: socket.socket, seconds: float) -> None:
        self._link, self._until = link, time.monotonic() + seconds

    def __enter__(self) -> "_Deadline":
        self._before = self._link.gettimeout()
        return self

    def __exit__(self, *error: object) -> None:
        self._link.settimeout(self._before)

    def send(self, data: bytes) -> None:
        self._bound()
        self._link.sendall(data)

    def message(self) -> bytes:
        return self.exactly(_length(self.exactly(_LENGTH.size)))

    def exactly(self, count: int) -> bytes:
        out = bytearray()
        while len(out) < count:
            self._bound()
            data = self._link.recv(count - len(out))
            if not data:
                raise Unfinished("the other end closed the connection in the hello")
            out += data
        return bytes(out)

    def _bound(self) -> None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the hello took too long")
        self._link.settimeout(left)
