"""ProcessDump: what a process is doing at one moment, and the page that shows several of them.

Stacks are files, lines and functions: no values, so neither prompts nor keys. Knows no torch, no Ray and no ranks.
"""

import asyncio
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
_OURS = ("experts", "router_svc", "cluster")


@dataclass(frozen=True, slots=True)
class StepMoment:
    """Where a step thread is.

    layer: MoE layer, -1 = none of this step yet
    phase: what it waits in (header, ids, dispatch, combine), empty where it waits for nobody
    seconds: of waiting
    peers: ranks that are not known to have sent or received their part of it yet
    """

    epoch: int
    step: int
    layer: int = -1
    phase: str = ""
    seconds: float = 0.0
    peers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ThreadDump:
    """frames: a line each, the innermost first."""

    name: str
    frames: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProcessDump:
    """trouble: why there is no more to say, empty where the process answered
    moment: of a rank in an epoch
    tasks: named ones of the event loop, each with the line where it waits
    """

    name: str
    pid: int
    trouble: str = ""
    moment: StepMoment | None = None
    threads: tuple[ThreadDump, ...] = ()
    tasks: tuple[str, ...] = ()


def dump_here(name: str, moment: StepMoment | None = None) -> ProcessDump:
    """This process, from any of its threads; `tasks` where one of them runs an event loop and is the caller."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = [
        ThreadDump(names.get(number, f"thread {number}"), _frames(frame))
        for number, frame in sys._current_frames().items()
    ]
    stacks.sort(key=lambda thread: (thread.name != "MainThread", thread.name))
    return ProcessDump(name, os.getpid(), "", moment, tuple(stacks), _tasks())


def page(processes: Sequence[ProcessDump], head: str = "") -> str:
    """All of them in one page of text."""
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    lines = [f"tokenyard dump, {when}{': ' if head else ''}{head}; innermost call first", ""]
    for process in processes:
        lines.append(f"{process.name}, pid {process.pid or '?'}: {summary(process)}")
        for task in process.tasks:
            lines.append(f"  task {task}")
        for thread in process.threads:
            lines.append(f"  thread {thread.name}")
            lines += [f"    {frame}" for frame in thread.frames]
        lines.append("")
    return "\n".join(lines)


def summary(process: ProcessDump) -> str:
    """A process's moment in a line."""
    at = process.moment
    if process.trouble or at is None:
        return process.trouble or "answers"
    where = f"epoch {at.epoch}, step {at.step}" + (f", layer {at.layer}" if at.layer >= 0 else "")
    if not at.phase:
        return f"{where}, waits for no rank"
    return f"{where}, {at.phase}: has waited {at.seconds:.1f} s for {' and '.join(at.peers) or 'the other ranks'}"


def plain(process: ProcessDump) -> dict[str, Any]:
    """For `--json`."""
    return asdict(process)


def _frames(frame: FrameType) -> tuple[str, ...]:
    return tuple(
        f"{_short(entry.filename)}:{entry.lineno} {entry.name}: {entry.line}"
        for entry in reversed(traceback.extract_stack(frame))
    )


def _tasks() -> tuple[str, ...]:
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:  # no event loop runs here
        return ()
    named = {task.get_name(): _awaits(task.get_coro()) for task in tasks if not task.get_name().startswith("Task-")}
    return tuple(sorted(f"{name}: {' > '.join(lines)}" for name, lines in named.items()))


def _awaits(work: Any) -> list[str]:
    """Lines of ours at which a coroutine and what it awaits stand, the outermost first."""
    lines = []
    while work is not None:
        frame = getattr(work, "cr_frame", None) or getattr(work, "gi_frame", None)
        file = _short(frame.f_code.co_filename) if frame is not None else ""
        if frame is not None and file.split("/")[0] in _OURS and file != "experts/background.py":
            lines.append(f"{file}:{frame.f_lineno}")
        work = getattr(work, "cr_await", None) or getattr(work, "gi_yieldfrom", None)
    return lines


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(_ROOT)) if path.is_relative_to(_ROOT) else "/".join(path.parts[-3:])
