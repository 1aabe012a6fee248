"""Builds the C kernels with the system's compiler at first use, one library per instruction set, and keeps them.

Knows files and the compiler; not what the kernels do.
"""

import hashlib
import os
import platform
import subprocess
import tempfile
from pathlib import Path

from experts import env

_HERE = Path(__file__).parent
_SOURCES = (_HERE / "swiglu.c", _HERE / "split.c", _HERE / "grouped.h", _HERE / "lanes.h")
_FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared")
_TARGETS = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mavx2", "-mfma"),
    "avx2": ("-mavx2", "-mfma"),
    "portable": (),
}
_NEEDS = {
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16"},
    "avx2": {"avx2", "fma"},
    "portable": set(),
}


class BuildFailed(Exception):
    """There is no kernel for this machine; the text says why in one line."""


def best_target(flags: set[str]) -> str:
    """The widest instruction set that a processor with these flags (as in /proc/cpuinfo) has."""
    return next(target for target, needs in _NEEDS.items() if needs <= flags)


def processor_flags() -> set[str]:
    """This machine's instruction sets; empty where they can't be told."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())


def library(target: str, files: tuple[Path, ...] = _SOURCES) -> Path:
    """The library built of `files` (C sources and their headers) for `target`, compiled if it is not there yet.

    Raises BuildFailed.
    """
    try:
        sources = [file.read_bytes() for file in files]
    except OSError as error:
        raise BuildFailed(f"{error.filename}: {error.strerror}") from error
    command = [env.compiler(), *_FLAGS, *_TARGETS[target]]
    what = repr((command, platform.machine())).encode()
    digest = hashlib.sha256(b"\0".join([*sources, what])).hexdigest()[:16]
    path = env.kernel_cache() / f"{target}-{digest}.so"
    if not path.exists():
        _compile([*command, *(str(file) for file in files if file.suffix == ".c")], path)
    return path


def _compile(command: list[str], path: Path) -> None:
    """Into a file of its own first, so that ranks that start together never see half a library."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(suffix=".so", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise BuildFailed(f"{path.parent}: {error.strerror}") from error
    try:
        done = subprocess.run([*command, "-o", part, "-lm"], capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise BuildFailed(f"{command[0]}: {(done.stderr.strip().splitlines() or ['failed without a word'])[0]}")
        os.replace(part, path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildFailed(f"{command[0]}: {error}") from error
    finally:
        Path(part).unlink(missing_ok=True)
