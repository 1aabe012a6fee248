"""Life: words in shared memory by which a process learns that another one died, before its sockets say so.

Linux frees a process's memory, for gigabytes half a second, before it closes sockets; a forked child may keep them open for
ever. A robust futex (kernels/life.c) is marked first. Where there is none, sockets tell.
"""

import ctypes
import fcntl
import logging
import mmap
import os
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

from experts.background import only_log, watch_thread
from experts.kernels.loaded import loaded

log = logging.getLogger(__name__)
WORD_BYTES = 4096
_AT_A_TIME = 120  # words of one thread
_SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


@cache
def _functions() -> Any:
    """Of kernels/life.c; None where there is none, or where this kernel cannot wait for several words (before 5.16)."""
    kernels = loaded()
    if kernels is None:
        return None
    control = ctypes.c_uint32(1)
    if kernels.life.wait(None, 0, ctypes.byref(control), 0) != -1:
        log.info("deaths of ranks are seen by their sockets: this kernel has no futex_waitv")
        return None
    return kernels.life


def life_word() -> int | None:
    """A descriptor of memory with a word that this process holds until it dies, for one other process; the caller closes
    it. None where there are none. Raises OSError."""
    functions = _functions()
    if functions is None:
        return None
    fd = functions.word()
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd))
    return int(fd)


class Deaths:
    """Watches words of other processes until it is closed."""

    def __init__(self) -> None:
        self._groups: list[_Group] = []
        self._lock = threading.Lock()

    def watch(self, fd: int, died: Callable[[], object]) -> None:
        """Call `died` once, from a thread of this object, when the holder of a word is dead, as it may be already; never where
        this process can't wait for words.

        fd: of its memory, which the caller closes

        Raises ValueError for memory that could end under its reader, OSError.
        """
        if _functions() is None:
            return  # sockets tell
        if (size := os.fstat(fd).st_size) != WORD_BYTES or fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALED != _SEALED:
            raise ValueError(f"memory of {size} bytes, expected {WORD_BYTES} that are sealed")
        memory = mmap.mmap(fd, WORD_BYTES)
        with self._lock:
            if not self._groups or not self._groups[-1].add(memory, died):
                self._groups.append(_Group())
                self._groups[-1].add(memory, died)

    def close(self) -> None:
        """Call nobody any more."""
        with self._lock:
            groups, self._groups = self._groups, []
        for group in groups:
            group.close()


class _Group:
    """The words of one thread, which sleeps until one changes. A word whose holder died is never looked at again."""

    def __init__(self) -> None:
        self._control = ctypes.c_uint32(0)
        self._lock = threading.Lock()
        self._words: list[tuple[mmap.mmap, Callable[[], object]]] = []
        self._added = 0
        self._closed = False
        watch_thread("life", self._run, only_log, returns=True)

    def add(self, memory: mmap.mmap, died: Callable[[], object]) -> bool:
        """Whether there was room."""
        with self._lock:
            if self._added >= _AT_A_TIME:
                return False
            self._added += 1
            self._words.append((memory, died))
        _functions().wake(ctypes.byref(self._control))
        return True

    def close(self) -> None:
        with self._lock:
            self._closed = True
        _functions().wake(ctypes.byref(self._control))

    def _run(self) -> None:
        functions = _functions()
        while True:
            seen = self._control.value
            with self._lock:
                if self._closed:
                    return
                words = list(self._words)
            views = [ctypes.c_uint32.from_buffer(memory) for memory, _ in words]
            addresses = (ctypes.c_void_p * max(len(views), 1))(*map(ctypes.addressof, views))
            index = functions.wait(addresses, len(words), ctypes.byref(self._control), seen)
            if index >= 0:
                with self._lock:
                    self._words.remove(words[index])
                words[index][1]()
            elif index != -1:
                raise OSError("waiting for words of other processes failed")
