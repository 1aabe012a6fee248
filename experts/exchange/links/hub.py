"""Hub: a worker's links to the others, made when they are first needed and kept through epochs.

Of a pair the lower rank calls: first by an abstract Unix socket, which answers only within this machine's network
namespace, else over TCP. A hello goes before anything else. Knows no tokens.
"""

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Collection
from functools import cache, partial
from itertools import cycle

from experts.background import only_log, watch_thread
from experts.epoch.membership import Member, Membership
from experts.errors import RankLost
from experts.exchange.links.circle import Circle, Lines, Peer, Sizes, Trouble
from experts.exchange.links.frame import FORMAT, Outcome
from experts.exchange.links.life import Deaths, life_word
from experts.exchange.links.native import native_lines
from experts.exchange.links.plain import PlainLines
from experts.hello import HELD_UP, PAUSE, SECONDS, Party, Stranger, Unfinished, answer, call

log = logging.getLogger(__name__)
Key = tuple[int, int]  # rank, incarnation
_WORD = b"w"  # goes with the descriptor of a word
_HELLOS = 16  # that are answered at a time; more wait to be accepted
_WAITING = 512  # connections that may
# By the Unix socket first, or TCP alone: another program may have the name, and say nothing. A rank that is only busy is tried
# again, so that its links are not slow for ever.
_TRIES = (True, True, False)
_SILENT = 30  # s without an answer of the other machine after which a TCP connection is over


class Hub:
    """Listens on `host` until closed. `circle` is for one thread at a time per epoch; a later epoch's ends an earlier one's.

    host, port: where it listens
    """

    def __init__(
        self, host: str, secret: str, rank: int, incarnation: int, sizes: Sizes, lines: Lines | None = None
    ) -> None:
        """lines: None = of the form that this process can have."""
        self.host = host
        self._secret, self._sizes = secret, sizes
        shape = (sizes.hidden, sizes.top_k, sizes.element, sizes.slots_per_rank, sizes.experts, sizes.budget)
        self._own = Party("exchange", FORMAT, rank, incarnation, shape)
        self._lines = lines or _lines()
        self._changed = threading.Condition()
        self._links: dict[Key, Peer] = {}
        self._meeting: tuple[int, Circle | None] = (-1, None)  # the newest epoch that members meet for, and its circle
        self._hellos = threading.BoundedSemaphore(_HELLOS)
        self._closing = False
        self._deaths = Deaths()
        self._heirs: list[Callable[[Key], object]] = []
        inet = socket.create_server((host, 0), family=_family(host), backlog=_WAITING)
        self.port: int = inet.getsockname()[1]
        near = _listening_near(host, self.port)
        self._listening = [inet] if near is None else [inet, near]
        self._answering: set[socket.socket] = set()  # hellos under way
        self._wake, self._woken = socket.socketpair()
        # Without it nobody new can be met, and the epoch after the next death fails, which names this rank.
        self._thread = watch_thread("links", self._serve, only_log, returns=True)

    def circle(self, members: Membership, seconds: float, patience: float, running: Collection[Key] = ()) -> Circle:
        """The links of an epoch's members; blocks until all have come, at most `seconds`. Raises RankLost.

        patience: s, of later waits
        running: members of the epoch under way, whose links carry its steps meanwhile
        """
        me = members.index(self._own.rank)
        until = time.monotonic() + seconds
        self._begin(members.epoch)
        ranks, sizes = [member.rank if member.holds_experts else -1 for member in members.members], self._sizes
        said: dict[int, Peer] = {}  # whom this end has told that it is here, and on which link
        while True:
            peers = self._peers(members, me, until, running)
            new = [m for m, peer in enumerate(peers) if peer is not None and _key(members.members[m]) not in running]
            awaited = [peer if m in new else None for m, peer in enumerate(peers)]
            meeting = self._lines.circle(members.epoch, awaited, me, ranks, sizes, patience)
            self._note_circle(members.epoch, meeting)
            try:
                say = [m for m in new if said.get(m) is not peers[m]]
                said |= {m: peer for m in say if (peer := peers[m]) is not None}
                meeting.meet(new, say, round(until * 1e9))
                self._note_circle(members.epoch, None)
                return self._lines.circle(members.epoch, peers, me, ranks, sizes, patience)
            except Trouble as trouble:
                if trouble.outcome != Outcome.DEAD or time.monotonic() > until:
                    meeting.abort()
                    raise self._not_met(members, trouble, seconds) from None
                time.sleep(PAUSE / 20)  # its other end makes it anew

    def on_death(self, told: Callable[[Key], object]) -> None:
        """Have `told` called with who has died, by a thread of the hub. Not every death is seen so: see `life`."""
        self._heirs.append(told)

    def close(self) -> None:
        """Listen no more, and end all links."""
        self._deaths.close()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            links, self._links = self._links, {}
            for connection in self._answering:
                _shut(connection)
        self._wake.close()
        self._thread.join(1)
        for link in links.values():
            link.close()

    def _begin(self, epoch: int) -> None:
        """Nobody meets for an earlier epoch any more."""
        with self._changed:
            if epoch <= self._meeting[0]:
                raise RankLost(epoch, -1, f"epoch {self._meeting[0]} is being met for")
            (_, earlier), self._meeting = self._meeting, (epoch, None)
            self._changed.notify_all()
        if earlier is not None:
            earlier.abort()

    def _note_circle(self, epoch: int, circle: Circle | None) -> None:
        """What a later epoch's meeting ends, None: all have come."""
        with self._changed:
            if self._meeting[0] != epoch or self._closing:
                raise RankLost(epoch, -1, "the epoch was given up while its members met")
            self._meeting = epoch, circle

    def _peers(self, members: Membership, me: int, until: float, running: Collection[Key]) -> list[Peer | None]:
        """The links to all, made where there are none."""
        peers: list[Peer | None] = [None] * members.size
        for index, member in enumerate(members.members):
            if index == me:
                continue
            key = _key(member)
            with self._changed:
                known = self._links.get(key) if key in running else self._usable(key, members.epoch)
            if known is not None:
                peers[index] = known
            elif self._own.rank < member.rank:
                peers[index] = self._call(member, members.epoch, until)
        for index, member in enumerate(members.members):
            if index != me and peers[index] is None:
                peers[index] = self._await(_key(member), members.epoch, until)
        return peers

    def _usable(self, key: Key, epoch: int) -> Peer | None:
        """A link that there is, and is whole. With the lock: once a later epoch is met for, only that one's call may read.
        Raises RankLost then."""
        if self._closing or self._meeting[0] != epoch:
            raise RankLost(epoch, -1, "the epoch was given up while its members met")
        found = self._links.get(key)
        return found if found is not None and found.usable(epoch) else None

    def _await(self, key: Key, epoch: int, until: float) -> Peer:
        """A link that the other end makes."""
        with self._changed:
            while (found := self._usable(key, epoch)) is None:
                if not self._changed.wait(until - time.monotonic()):
                    raise RankLost(epoch, -1, f"rank {key[0]} has not called in time")
            return found

    def _call(self, member: Member, epoch: int, until: float) -> Peer:
        """Make a link. Raises RankLost for a rank that does not listen, or is another."""
        for near in cycle(_TRIES):
            if self._closing or self._meeting[0] != epoch:
                raise RankLost(epoch, -1, "the epoch was given up while its members met")
            left = until - time.monotonic()
            try:
                connection = self._connected(member, max(min(left, SECONDS), 0.01), near)
                peer = self._keep(connection, _key(member))
            except (Stranger, ConnectionRefusedError) as error:
                raise RankLost(epoch, -1, f"rank {member.rank}: {error}") from None
            except (*HELD_UP, OSError) as error:
                if left <= 0:
                    raise RankLost(epoch, -1, f"rank {member.rank}: {error}") from None
                time.sleep(PAUSE)
            else:
                return peer
        raise AssertionError("tries never end")

    def _connected(self, member: Member, seconds: float, near: bool) -> socket.socket:
        """near: by the Unix socket first. Raises OSError, Stranger."""
        if near:
            # Refused in another network namespace; a stranger where another program has the name.
            with contextlib.suppress(ConnectionRefusedError, Stranger):
                return self._greeted(_near(member.node_ip, member.exchange_port), socket.AF_UNIX, member, seconds)
        where = (member.node_ip, member.exchange_port)
        return self._greeted(where, _family(member.node_ip), member, seconds)

    def _greeted(self, where: str | tuple[str, int], family: int, member: Member, seconds: float) -> socket.socket:
        link = socket.socket(family)
        try:
            link.settimeout(seconds)
            link.connect(where)
            _tune(link)
            found = call(link, self._secret, self._own, seconds)
            if (found.rank, found.incarnation) != _key(member):
                raise Stranger(
                    f"incarnation {found.incarnation} of rank {found.rank}, expected {member.incarnation} of {member.rank}"
                )
            return link
        except BaseException:
            link.close()
            raise

    def _keep(self, connection: socket.socket, key: Key) -> Peer:
        """The newest link to a worker takes the place of an earlier one."""
        connection.settimeout(None)
        word = _swap_words(connection)
        peer = self._lines.peer(connection, self._own.incarnation, key[1], self._sizes.most_bytes)
        with self._changed:
            ended = [self._links.pop(one) for one in list(self._links) if one[0] == key[0] and one[1] <= key[1]]
            self._links[key] = peer
            if self._closing:
                ended.append(peer)
            self._changed.notify_all()
        for link in ended:
            link.close()
        if word is not None:
            self._watch(word, peer, key)
        return peer

    def _watch(self, word: int, peer: Peer, key: Key) -> None:
        """Notice the end of the other process by its word."""

        def died() -> None:
            peer.died()
            for told in self._heirs:
                told(key)

        try:
            self._deaths.watch(word, died)
        except (OSError, ValueError) as error:
            log.warning("rank %d: its death will be seen late: %s", key[0], error)
        finally:
            os.close(word)

    def _serve(self) -> None:
        poll = select.poll()
        for listener in (*self._listening, self._woken):
            poll.register(listener, select.POLLIN)
        while True:
            self._hellos.acquire()
            ready = {fd for fd, _ in poll.poll()}
            if self._closing:
                break
            for listener in self._listening:
                if listener.fileno() in ready and (connection := _accepted(listener)) is not None:
                    watch_thread("link-hello", partial(self._answer, connection), only_log, returns=True)
                    break
            else:
                self._hellos.release()
        for one in (*self._listening, self._woken):
            one.close()

    def _answer(self, connection: socket.socket) -> None:
        with self._changed:
            self._answering.add(connection)
            if self._closing:
                _shut(connection)
        try:
            _tune(connection)
            found = answer(connection, self._secret, self._own)
            self._keep(connection, (found.rank, found.incarnation))
        except (Stranger, OSError) as error:
            connection.close()
            log.warning("no link: %s", str(error) or "the hello took too long")
        finally:
            with self._changed:
                self._answering.discard(connection)
            self._hellos.release()

    def _not_met(self, members: Membership, trouble: Trouble, seconds: float) -> RankLost:
        who = f"rank {members.members[trouble.member].rank}" if trouble.member >= 0 else "nobody"
        what = {
            Outcome.OVER: "the epoch was given up while its members met",
            Outcome.LATE: f"{who} has not come within {seconds:g} s",
        }.get(trouble.outcome, f"{who}: {trouble}")
        return RankLost(members.epoch, -1, f"the group did not come together: {what}")


def _swap_words(connection: socket.socket) -> int | None:
    """Give the other process a word of this one's life, and take its; None on TCP, or where it has none. Raises OSError."""
    if connection.family != socket.AF_UNIX:
        return None
    mine = life_word()
    connection.settimeout(SECONDS)
    try:
        socket.send_fds(connection, [_WORD], [] if mine is None else [mine])
        said, theirs, _, _ = socket.recv_fds(connection, len(_WORD), 1)
    finally:
        connection.settimeout(None)
        if mine is not None:
            os.close(mine)
    if said != _WORD:
        raise Unfinished("the other end closed the connection after the hello")
    return theirs[0] if theirs else None


def _accepted(listener: socket.socket) -> socket.socket | None:
    try:
        return listener.accept()[0]
    except OSError as error:  # gone again, or no descriptor is left
        log.warning("no link: %s", error)
        time.sleep(PAUSE)
        return None


def _lines() -> Lines:
    return native_lines() or _plain_lines()


def _plain_lines() -> Lines:
    _say_that_it_is_slow()
    return PlainLines()


@cache
def _say_that_it_is_slow() -> None:
    log.warning("tokens travel without C kernels, which is slower")


def _key(member: Member) -> Key:
    return member.rank, member.incarnation


def _near(host: str, port: int) -> str:
    """The abstract Unix name that a worker listens at beside its TCP port."""
    return f"\0tokenyard/{host}/{port}"


def _listening_near(host: str, port: int) -> socket.socket | None:
    """None where this machine has no such names, or another program took this one."""
    near = socket.socket(socket.AF_UNIX)
    try:
        near.bind(_near(host, port))
        near.listen(_WAITING)
    except OSError as error:
        near.close()
        log.warning("ranks of this machine call this one over TCP: its Unix name: %s", error)
        return None
    return near


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # by the other side already
        connection.shutdown(socket.SHUT_RDWR)


def _family(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _tune(connection: socket.socket) -> None:
    """Small frames leave at once, and a machine that is gone is noticed."""
    if connection.family == socket.AF_UNIX:
        return
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_USER_TIMEOUT", _SILENT * 1000), ("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
