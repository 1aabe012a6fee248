"""PolicyProcess: one policy's process as its parent holds it. Questions have a deadline; answers are not believed."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cluster.balance.foreign.wire import LENGTH_BYTES, Nonsense, pack, unpack

_HOME = str(Path(__file__).resolve().parents[3])
_START_SECONDS = 120.0  # for the interpreter and our own modules, on a machine that is busy
_SLICE = 0.2  # s between looks whether the process still lives
_WORDS = 4096  # bytes kept of what it printed
_SMALL = 1 << 16  # bytes of an answer without a placement
# The folder of our packages, if the interpreter does not find them by itself, and the user's folder as the very last.
_BOOT = (
    "import sys; sys.path += [p for p in sys.argv[1:3] if p and p not in sys.path]\n"
    "from cluster.balance.foreign.child import main; main(*map(int, sys.argv[3:6]))"
)


class Gone(Exception):
    """No answer came and none will: the process must be killed. The text says what it did."""


class PolicyProcess:
    """A fresh interpreter, in a session of its own. Used by one thread at a time; `kill` is for any."""

    def __init__(self, folder: str) -> None:
        """folder: the user's, searched last for modules; also where the process runs. Raises Gone."""
        life, questions, answers = os.pipe(), os.pipe(), os.pipe()
        theirs = (life[0], questions[0], answers[1])
        self._life, self._ask, self._answer = life[1], questions[1], answers[0]
        self._words = b""
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, _HOME, folder, *map(str, theirs)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0,
                cwd=folder if os.path.isdir(folder) else None, pass_fds=theirs, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._close()
            raise Gone(f"could not be started ({error})") from None
        finally:
            for fd in theirs:
                os.close(fd)
        assert self.process.stdout is not None, "its output is a pipe"
        self._printed = self.process.stdout.fileno()
        for fd in (self._ask, self._answer, self._printed):
            os.set_blocking(fd, False)
        try:
            if self._message(time.monotonic() + _START_SECONDS, _SMALL) != {"ready": True}:
                raise Gone("did not start")
        except BaseException:
            self.kill()
            raise

    def call(self, message: dict[str, Any], seconds: float, most: int = _SMALL) -> dict[str, Any]:
        """The answer to a message. most: bytes that an answer may have. Raises Gone."""
        deadline = time.monotonic() + seconds
        left = memoryview(pack(message))
        try:
            while left:
                self._await(self._ask, select.POLLOUT, deadline)
                with contextlib.suppress(BlockingIOError):
                    left = left[os.write(self._ask, left) :]
            return self._message(deadline, most)
        except TimeoutError:
            raise Gone(f"did not answer within {seconds:g} s{self._last_words()}") from None
        except OSError as error:  # a broken pipe, or `kill` by another thread
            raise Gone(f"ended ({error.strerror}){self._last_words()}") from None

    def kill(self) -> None:
        """End the process and those that it forked. Safe to call again."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)

    def close(self) -> None:
        """Kill it and free its pipes; no call may be under way."""
        self.kill()
        self._close()
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None

    def _message(self, deadline: float, most: int) -> dict[str, Any]:
        size = int.from_bytes(self._read(LENGTH_BYTES, deadline), "little")
        if size > most:
            raise Gone(f"answered with {size} bytes where at most {most} make sense")
        try:
            return unpack(self._read(size, deadline))
        except Nonsense as error:
            raise Gone(f"answered with {error}") from None

    def _read(self, size: int, deadline: float) -> bytes:
        got = bytearray()
        while len(got) < size:
            self._await(self._answer, select.POLLIN, deadline)
            try:
                part = os.read(self._answer, size - len(got))
            except BlockingIOError:
                continue
            if not part:
                self._ended()
            got += part
        return bytes(got)

    def _await(self, fd: int, event: int, deadline: float) -> None:
        """Until `fd` is ready, throwing away what is printed meanwhile, so that nothing waits for a reader of it."""
        poller = select.poll()
        poller.register(fd, event)
        poller.register(self._printed, select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            ready = dict(poller.poll(1000 * min(left, _SLICE)))
            if self._printed in ready and not self._keep_words():
                poller.unregister(self._printed)
            if fd in ready:
                return
            assert self.process is not None, "a process that was closed is not asked"
            if self.process.poll() is not None:  # one that it forked may keep the pipe open
                self._ended()

    def _ended(self) -> None:
        assert self.process is not None, "a process that was closed is not asked"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        code = self.process.poll()
        how = "closed its pipe" if code is None else f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        raise Gone(f"ended its process ({how}){self._last_words()}")

    def _keep_words(self) -> bool:
        """Take what was printed; whether more may come."""
        try:
            part = os.read(self._printed, 1 << 16)
        except BlockingIOError:
            return True
        self._words = (self._words + part)[-_WORDS:]
        return bool(part)

    def _last_words(self) -> str:
        """The last line that it printed, for an error."""
        with contextlib.suppress(OSError):
            for _ in range(64):  # what a pipe holds; a writer without end is not waited for
                before = self._words
                if not self._keep_words() or self._words == before:
                    break
        lines = [line for line in self._words.decode(errors="replace").splitlines() if line.strip()]
        return f"; its last line was {clean(lines[-1])!r}" if lines else ""

    def _close(self) -> None:
        for fd in (self._life, self._ask, self._answer):
            with contextlib.suppress(OSError):
                os.close(fd)


def clean(text: Any, most: int = 300) -> str:
    """A stranger's text for a line of ours: printable, on one line, not long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line if len(line) <= most else line[: most - 1] + "…"
