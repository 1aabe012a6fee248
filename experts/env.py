"""Every environment variable that `experts` reads. A malformed value is an error, not a default."""

import os
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


def kernel_cache() -> Path:
    """XDG_CACHE_HOME (else ~/.cache): where built kernels are kept, in a folder of their own."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tokenyard" / "kernels"
