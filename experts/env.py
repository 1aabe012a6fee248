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
