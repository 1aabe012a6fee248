"""Serve in one process until a signal asks to end."""

import asyncio
import contextlib
import sys

from cluster.plan import ServePlan
from cluster.serve.inprocess import LocalServer
from cluster.serve.loading import LoadingView
from cluster.serve.notes import ready, say
from cluster.serve.signals import Signals
from cluster.watch.recorder import RecordingEnd
from experts.address import joined
from experts.background import join_task


def run(plan: ServePlan, signals: Signals) -> None:
    """Load, print where it listens, serve, and end with the streams given a moment."""
    say_recorded(asyncio.run(_run(plan, signals)))


async def _run(plan: ServePlan, signals: Signals) -> RecordingEnd:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def ask() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: all is ended already
            loop.call_soon_threadsafe(stop.set)

    signals.ask_first(ask)
    server = LocalServer(plan)
    signals.dump_by(server.dump)
    with LoadingView(plan.seats) as view:
        starting = join_task("start", server.start(view.update))
        waiting = join_task("signals", stop.wait())
        await asyncio.wait([starting, waiting], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            view.note("stopping: waiting for the load to end")
        await starting
    if not stop.is_set():
        assert server.grpc is not None, "a started server listens"
        ready(ready_line(plan, server.grpc.port, server.http_port))
    await waiting
    await server.stop()
    return server.recorded


def say_recorded(recorded: RecordingEnd) -> None:
    """What is to be said of a recording that ended; exits with 1 where some of it is missing."""
    if recorded.text:
        say(f"tokenyard: {recorded.text}")
    if recorded.lost:
        sys.exit(1)


def ready_line(plan: ServePlan, grpc_port: int, http_port: int) -> str:
    """What tells a person, and a script, that requests are served."""
    roles = [seat.role for seat in plan.seats]
    if plan.config.one_process:
        shape = "one process"
    elif plan.config.colocate:
        shape = f"{len(roles)} ranks, each attention and experts"
    else:
        shape = f"{roles.count('attention')} attention + {roles.count('expert')} expert ranks"
    grpc, http = (joined(plan.config.host, port) for port in (grpc_port, http_port))
    dtype = str(plan.dtype).removeprefix("torch.")
    return f"tokenyard ready: {plan.name} ({dtype}, {shape}), grpc {grpc}, http http://{http}"
