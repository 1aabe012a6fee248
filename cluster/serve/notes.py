"""A server's notes: the lines it writes for people. That nobody can read them is no reason to stop serving.

Standard output and error of a server drop what can't be written: a full disk, a reader that went away or does not read.
Knows no server.
"""

import contextlib
import io
import os
import select
import sys

_PIECE = 4096  # bytes that a pipe takes at once, or says that it can't
_PATIENCE = 200  # ms for a reader who is slow; one who stays away gets none


class _Lenient(io.FileIO):
    """A file that takes every byte, and drops what can't be written without waiting."""

    _away = False

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        view = memoryview(data)
        for start in range(0, len(view), _PIECE):
            try:
                self._away = not self._ready()
                if self._away:
                    break
                super().write(view[start : start + _PIECE])
            except OSError:
                break
        return len(view)

    def _ready(self) -> bool:
        asked = select.poll()
        asked.register(self.fileno(), select.POLLOUT)
        return bool(asked.poll(0 if self._away else _PATIENCE))


def open_closed() -> None:
    """Open /dev/null where standard input, output or error is closed: a connection would get the number and the notes."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


def drop_unwritable() -> None:
    """Let standard output and error drop what can't be written; for servers. Libraries write there too."""
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(_Lenient(number, "w", closefd=False), "utf-8", "backslashreplace", write_through=True)
        for number in (1, 2)
    )


def ready(line: str) -> None:
    """The line that says that requests are served, on standard output."""
    print(line, flush=True)


def say(line: str) -> None:
    """A line for people, on standard error; lost where that can't be written."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
