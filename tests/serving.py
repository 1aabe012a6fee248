"""`tokenyard` as its user runs it, in processes of its own: a server until the end of a block, a command to its end."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.patience import PATIENCE, wait_until

TOKENYARD = [str(Path(sys.executable).parent / "tokenyard")]
READY = re.compile(r"grpc (\S+:\d+), http http://\S+:(\d+)")
START_SECONDS = 600.0  # for a start on Ray beside other programs


@contextmanager
def serving(
    *options: str, command: Sequence[str] = TOKENYARD, said: list[str] | None = None, **popen: Any
) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """(process, gRPC target, HTTP port) of a `serve` that is ready.

    command: a tokenyard of another environment. said: gets the lines of its
    standard error; popen: of subprocess.Popen, such as cwd and env.
    """
    words = [*command, "serve", "--grpc-port", "0", "--http-port", "0", *options]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **popen
    )
    notes: list[str] = []
    errors: list[str] = [] if said is None else said
    readers = [
        threading.Thread(target=lambda: notes.extend(process.stdout or []), daemon=True),
        threading.Thread(target=lambda: errors.extend(process.stderr or []), daemon=True),
    ]
    for reader in readers:
        reader.start()

    def ready() -> re.Match[str] | None:
        return next((found for line in list(notes) if (found := READY.search(line))), None)

    try:
        wait_until(lambda: ready() or process.poll() is not None, "the ready line", START_SECONDS)
        found = ready()
        assert found, f"no ready line: {notes} {errors}"
        yield process, found[1], found[2]
    finally:
        kill_tree(process)
        for reader in readers:
            reader.join(PATIENCE)


def kill_tree(process: subprocess.Popen[str]) -> None:
    """End a process and all that it started, whatever state it is in."""
    family = [process]
    if process.poll() is None:
        family += psutil.Process(process.pid).children(recursive=True)
        process.kill()
    process.wait(PATIENCE)
    for child in family[1:]:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> None:
    """Send a signal; exit code 0, and no process of its tree is left."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    assert process.wait(PATIENCE) == 0
    wait_until(lambda: not alive(family), "the end of the server's processes")


def alive(family: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run."""
    return [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def run(*arguments: str, text: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """A command to its end. options: of subprocess.run, such as cwd and env."""
    return subprocess.run(
        [*TOKENYARD, *arguments], capture_output=True, text=True, timeout=3 * PATIENCE, input=text, **options
    )
