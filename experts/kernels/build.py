"""Builds the C kernels with the system's compiler, one library per instruction set, and keeps them.

`make venv` and the container image build them ahead (cluster/kernels.py); what is missing is built at first use.
Knows files and the compiler; not what the kernels do.
"""

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from experts import env

log = logging.getLogger(__name__)

_HERE = Path(__file__).parent
_C = ("swiglu.c", "split.c", "loads.c", "links.c", "link_tokens.c", "life.c")
_HEADERS = ("grouped.h", "lanes.h", "split.h", "links.h")
SOURCES = tuple(_HERE / name for name in (*_C, *_HEADERS))
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
    """This machine's instruction sets; empty where they are not known."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())


def targets() -> tuple[str, ...]:
    """What can be built on this kind of processor, the widest first."""
    return tuple(_TARGETS) if platform.machine() in ("x86_64", "AMD64") else ("portable",)


def library(target: str, files: tuple[Path, ...] = SOURCES) -> Path:
    """The library built of `files` (C sources and their headers) for `target`, compiled if it is not there yet.

    That is logged in one line, as it takes seconds. Raises BuildFailed.
    """
    try:
        sources = [file.read_bytes() for file in files]
    except OSError as error:
        raise BuildFailed(f"{error.filename}: {error.strerror}") from error
    command = [env.compiler(), *_FLAGS, *_TARGETS[target]]
    what = repr((command, platform.machine())).encode()
    digest = hashlib.sha256(b"\0".join([*sources, what])).hexdigest()[:16]
    name = f"{target}-{digest}.so"
    can_compile, refused = shutil.which(command[0]) is not None, []
    for folder in env.kernel_folders():
        path = folder / name
        if _is_ours(folder) and _is_ours(path):
            return path
        if not can_compile:
            continue
        if reason := _why_not_kept_in(folder):
            refused.append(f"{folder}: {reason}")
            continue
        log.warning("compiling C kernels (%s) into %s, once", target, folder)
        _compile([*command, *(str(file) for file in files if file.suffix == ".c")], path)
        return path
    if not can_compile:
        raise BuildFailed(f"no C compiler: {command[0]} not found")
    raise BuildFailed("no folder to keep kernels in (" + "; ".join(refused) + ")")


def _is_ours(path: Path) -> bool:
    """Whether only root and this user can have written `path`: code of anybody else is not loaded."""
    try:
        found = path.stat()
    except OSError:
        return False
    return found.st_uid in (0, os.getuid()) and not found.st_mode & 0o022


def _why_not_kept_in(folder: Path) -> str:
    """What keeps kernels from being written to `folder`, which is made if need be; "" if nothing does."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        return error.strerror or "can't be made"
    if not _is_ours(folder):
        return "others can write to it"
    return "" if os.access(folder, os.W_OK | os.X_OK) else "can't be written"


def _compile(command: list[str], path: Path) -> None:
    """Into a file of its own first, so that ranks that start together never see half a library."""
    try:
        handle, part = tempfile.mkstemp(suffix=".so", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise BuildFailed(f"{path.parent}: {error.strerror}") from error
    try:
        done = subprocess.run([*command, "-o", part, "-lm"], capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise BuildFailed(f"{command[0]}: {(done.stderr.strip().splitlines() or ['failed without a word'])[0]}")
        os.chmod(part, 0o755)  # an image's kernels are read by any user id
        os.replace(part, path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildFailed(f"{command[0]}: {error}") from error
    finally:
        Path(part).unlink(missing_ok=True)
