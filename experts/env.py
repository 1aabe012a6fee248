"""Every environment variable that `experts` reads. A malformed value is an error, not a default."""

import contextlib
import os
import tempfile
from pathlib import Path

from experts.errors import UserError

KERNEL_CHOICES = ("auto", "torch", "avx512", "avx2", "portable")


def kernel_choice() -> str:
    """TOKENYARD_KERNELS: which expert kernel to use on CPUs; `auto` takes the best the processor has."""
    choice = os.environ.get("TOKENYARD_KERNELS", "auto")
    if choice not in KERNEL_CHOICES:
        raise UserError(repr(choice), f"one of {', '.join(KERNEL_CHOICES)}", "environment variable TOKENYARD_KERNELS")
    return choice


def thread_limit() -> int | None:
    """OMP_NUM_THREADS: the most threads that any part of a step may use; None where it is not set.

    To be read where the user's own environment is: Ray sets it to 1 in its workers.
    """
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # the rest is for nested regions
    if not text:
        return None
    if not text.isdigit() or int(text) == 0:
        raise UserError(repr(text), "a number of threads of at least 1", "environment variable OMP_NUM_THREADS")
    return int(text)


def threads_always() -> bool:
    """TOKENYARD_THREADS: `all` gives every part of a step all threads, whether they pay or not, for measuring."""
    choice = os.environ.get("TOKENYARD_THREADS", "auto")
    if choice not in ("auto", "all"):
        raise UserError(repr(choice), "auto or all", "environment variable TOKENYARD_THREADS")
    return choice == "all"


def compiler() -> str:
    """CC: the C compiler that builds the kernels at first use."""
    return os.environ.get("CC", "cc")


def kernel_folders() -> list[Path]:
    """Where built kernels are looked for, and kept in the first that can be written.

    TOKENYARD_KERNEL_CACHE; a folder in the user's cache (XDG_CACHE_HOME, else ~/.cache); one among temporary files.
    """
    folders = []
    if given := os.environ.get("TOKENYARD_KERNEL_CACHE"):
        folders.append(Path(given))
    with contextlib.suppress(RuntimeError):  # a user id without HOME and without an entry in /etc/passwd
        cache = os.environ.get("XDG_CACHE_HOME")
        folders.append((Path(cache) if cache else Path.home() / ".cache") / "tokenyard" / "kernels")
    with contextlib.suppress(OSError):  # no folder for temporary files can be written
        folders.append(Path(tempfile.gettempdir()) / f"tokenyard-kernels-{os.getuid()}")
    return folders
