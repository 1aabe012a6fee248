"""Background tasks and threads with a name, whose unexpected end is never silent.

Every task and thread of ours starts here; tests/test_background_starts.py holds this. The starter says what its
unexpected end means: `ended` degrades what depends on it, `end_process` ends the process, `only_log` is for what others
find out by themselves. Unexpected is any exception, SystemExit and KeyboardInterrupt included, a cancellation that
nobody asked of the task, and, unless `returns`, the return of the work. Knows no Ray, no torch and no work.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")
Ended = Callable[[str], Awaitable[None] | None]  # gets one line: which work ended, and how
_running: set[asyncio.Task[Any]] = set()  # an event loop keeps only weak references to its tasks


class WorkEnded(Exception):
    """A task that its starter waits for asked for the end of the whole process."""


def watch_task(name: str, work: Coroutine[Any, Any, None], ended: Ended, returns: bool = False) -> asyncio.Task[None]:
    """Run `work` in this event loop; `ended` is called in it, once, when it ended though nobody cancelled it.

    returns: the work may come to its end.
    """
    return _keep(asyncio.create_task(_watched(name, work, ended, returns), name=name), work)


def join_task(name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Run `work` in this event loop for a starter who awaits it: errors come out there.

    SystemExit and KeyboardInterrupt, which would end the event loop, come out as WorkEnded.
    """
    return _keep(asyncio.create_task(_contained(name, work), name=name), work)


def watch_thread(
    name: str, work: Callable[[], None], ended: Callable[[str], object], returns: bool = False, daemon: bool = True
) -> threading.Thread:
    """Start a thread that runs `work`; `ended` is called in it, once, when it ended unexpectedly.

    returns: the work may come to its end.
    """

    def run() -> None:
        try:
            work()
        except BaseException as error:
            how = _raised(name, "thread", error)
        else:
            if returns:
                return
            how = _returned(name, "thread")
        try:
            ended(how)
        except BaseException:  # nobody is left to hand it to
            log.exception("the end of thread %s could not be dealt with", name)

    thread = threading.Thread(target=run, name=name, daemon=daemon)
    thread.start()
    return thread


def only_log(what: str) -> None:
    """For work whose end others find out by themselves: the log line is enough."""


def end_process(what: str) -> None:
    """For work without which its process is of no use; its keeper starts another."""
    log.critical("%s: this process ends", what)
    logging.shutdown()
    os._exit(1)


def _keep(task: asyncio.Task[T], work: Coroutine[Any, Any, Any]) -> asyncio.Task[T]:
    _running.add(task)

    def ended(task: asyncio.Task[T]) -> None:
        _running.discard(task)
        work.close()  # of a task that was cancelled before its first step; Python warns of work that never began

    task.add_done_callback(ended)
    return task


async def _watched(name: str, work: Coroutine[Any, Any, None], ended: Ended, returns: bool) -> None:
    try:
        await work
    except asyncio.CancelledError as error:
        if _asked_to_end():
            raise
        how = _raised(name, "task", error)
    except GeneratorExit:  # the event loop is gone
        raise
    except BaseException as error:  # SystemExit and KeyboardInterrupt would end the event loop
        how = _raised(name, "task", error)
    else:
        if returns:
            return
        how = _returned(name, "task")
    try:
        dealing = ended(how)
        if dealing is not None:
            await dealing
    except asyncio.CancelledError:
        raise
    except BaseException:  # nobody is left to hand it to
        log.exception("the end of task %s could not be dealt with", name)


async def _contained(name: str, work: Coroutine[Any, Any, T]) -> T:
    try:
        return await work
    except (SystemExit, KeyboardInterrupt) as error:
        raise WorkEnded(f"{name} ended with {_told(error)}") from error


def _asked_to_end() -> bool:
    """Whether the running task itself was cancelled, and not something that it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _raised(name: str, kind: str, error: BaseException) -> str:
    how = f"{kind} {name} ended with {_told(error)}"
    log.error("%s", how, exc_info=error)
    return how


def _returned(name: str, kind: str) -> str:
    how = f"{kind} {name} ended though it never should"
    log.error("%s", how)
    return how


def _told(error: BaseException) -> str:
    """The error in a line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
