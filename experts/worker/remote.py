"""Typed calls to objects that may live in another process: the one file in which Ray's `.remote(` stands.

    worker = start(WorkerHost, order, options={"num_cpus": 0})   # for mypy a WorkerHost
    await worker.prepare(record)                                 # so it checks the verb and its arguments
    tell(peer.ring(wanted))                                      # nobody waits for the answer
    wait(worker.progress())                                      # without an event loop
    worker = here(WorkerHost(order))                             # the same object in this process

A verb is a public `async def` of the class. Every call begins at once, ends by the verb's deadline (see `deadlines`),
and raises what the verb raised; Gone, where the process has ended.
"""

import asyncio
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Generic, NoReturn, TypeVar, cast

from experts.background import join_task
from experts.worker.deadlines import deadline

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")
Send = Callable[[str, tuple[Any, ...], dict[str, Any]], Awaitable[Any]]


class Gone(Exception):
    """The process that was called has ended, or never came up."""


class Call(Generic[R]):
    """A call under way. Awaited, it gives what the verb returned."""

    __slots__ = ("_seconds", "_what", "work")

    def __init__(self, work: Awaitable[R], what: str, seconds: float | None) -> None:
        self.work, self._what, self._seconds = work, what, seconds

    def __await__(self) -> Generator[Any, None, R]:
        return self._end().__await__()

    async def _end(self) -> R:
        expired = asyncio.timeout(self._seconds)
        try:
            async with expired:
                return await self.work
        except TimeoutError:
            if expired.expired():
                raise TimeoutError(f"{self._what} did not answer within {self._seconds:g} s") from None
            raise
        except Exception as error:
            _raise_as_here(error)


class _Port:
    """What stands for the object. Its verbs are made on first use."""

    def __init__(self, kind: type, send: Send, made_of: tuple[Any, ...]) -> None:
        self._kind, self._send, self._made_of = kind, send, made_of

    def __getattr__(self, verb: str) -> Callable[..., Call[Any]]:
        kind = self.__dict__.get("_kind")
        if kind is None or verb.startswith("_") or not inspect.iscoroutinefunction(getattr(kind, verb, None)):
            raise AttributeError(f"{getattr(kind, '__name__', 'a port')} has no verb {verb!r}")
        what, seconds, send = f"{kind.__name__}.{verb}", deadline(kind, verb), self._send

        def call(*arguments: Any, **named: Any) -> Call[Any]:
            return Call(send(verb, arguments, named), what, seconds)

        setattr(self, verb, call)
        return call

    def __reduce__(self) -> tuple[Any, ...]:
        return self._made_of


def start(kind: type[T], *arguments: Any, options: dict[str, Any]) -> T:
    """A Ray actor of class `kind`, made with `arguments`. options: Ray's."""
    import ray  # loads only where there are actors

    return remote(kind, ray.remote(kind).options(**options).remote(*arguments))


def remote(kind: type[T], actor: Any) -> T:
    """The port of a Ray actor of class `kind`. It may be handed to other processes."""

    def send(verb: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Awaitable[Any]:
        sent: Awaitable[Any] = getattr(actor, verb).remote(*arguments, **named)
        return sent

    return cast(T, _Port(kind, send, (remote, (kind, actor))))


def here(target: T) -> T:
    """The port of an object of this process; its verbs run in the caller's event loop."""

    def send(verb: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Awaitable[Any]:
        work: Coroutine[Any, Any, Any] = getattr(target, verb)(*arguments, **named)
        return join_task(f"{type(target).__name__}.{verb}", work)

    return cast(T, _Port(type(target), send, (here, (target,))))


def target(port: T) -> T:
    """The object itself, of a port that `here` made."""
    assert isinstance(port, _Port), type(port)
    assert port._made_of[0] is here, "an object of this process"
    return cast(T, port._made_of[1][0])


def this_actor(kind: type[T]) -> T:
    """The port of the Ray actor that runs this, whose class is `kind`."""
    import ray

    return remote(kind, ray.get_runtime_context().current_actor)


def tell(call: Awaitable[object]) -> None:
    """Leave a call to itself: it has begun, and what it returns or raises is nobody's business."""
    if isinstance(call, Call) and isinstance(call.work, asyncio.Task):
        call.work.add_done_callback(_look_at)


def wait(call: Awaitable[R], seconds: float | None = None) -> R:
    """What a call to a Ray actor returns, for a thread without an event loop. Raises TimeoutError after `seconds`."""
    import ray

    try:
        found: R = ray.get(_reference(call), timeout=seconds)
    except ray.exceptions.GetTimeoutError:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    except Exception as error:
        _raise_as_here(error)
    return found


def answered(call: Awaitable[object], seconds: float) -> bool:
    """Whether a call to a Ray actor has ended, well or not, within `seconds`."""
    import ray

    return bool(ray.wait([_reference(call)], timeout=seconds)[0])


def kill(port: object) -> None:
    """End a Ray actor's process; of an object of this process, all that its `kill` ends."""
    assert isinstance(port, _Port), type(port)
    made_by, arguments = port._made_of
    if made_by is here:
        arguments[0].kill()
        return
    import ray

    ray.kill(arguments[1])


def _reference(call: Awaitable[Any]) -> Any:
    assert isinstance(call, Call), type(call)
    return call.work


def _raise_as_here(error: Exception) -> NoReturn:
    """Raise an error of Ray's as this process would have raised it, any other as it is."""
    if "ray" not in sys.modules:
        raise error
    from ray.exceptions import RayActorError, RayTaskError

    if isinstance(error, RayActorError):
        raise Gone(str(error).partition("\n")[0]) from error
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        raise error.cause from error
    raise error


def _look_at(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.info("%s ended with %r", task.get_name(), error)
