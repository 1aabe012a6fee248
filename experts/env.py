"""Every environment variable that is read here, and those that are set for the processes of a private Ray. A malformed
value is an error, not a default."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from experts.errors import UserError

# Time limits of Ray and Serve, for a machine on which everything takes 20 times as long. What is dead is found through
# its connection; these only bound how long what is slow or stopped may stay silent.
_PATIENCE = {
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_raylet_start_wait_time_s": "60",  # one more round of it follows, see ray_session
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    # Serve finds a dead HTTP proxy with the next check, three of which must fail; a stopped one after 3 x (30 + 2) s.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
}
_PREFERRED = {
    # Ray gives its workers niceness 15: beside a busy program at 0 a rank gets one thirtieth of a core.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Ranks of one machine share its cores by turns: one that spins at its barriers takes them from the others (1 + 2 ranks on
# 2 cores: 54 tokens/s with libgomp's default, 85 with this). libgomp reads it when it is loaded, once.
_BETWEEN_RANKS = {"GOMP_SPINCOUNT": "1000"}

# What torch's NCCL groups read. By default its watchdog ends the process of every survivor when a member dies, a monitor
# thread asks the store, which is ours and in Python, once a second, and after an error the watchdog sleeps for a minute
# with a lock that operations need.
_NCCL = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    "TORCH_NCCL_PROPAGATE_ERROR": "0",
}

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


def wants_traceback() -> bool:
    """TOKENYARD_TRACEBACK: whether an error that nobody foresaw is shown with where it came from."""
    return bool(os.environ.get("TOKENYARD_TRACEBACK"))


def ray_address() -> str | None:
    """RAY_ADDRESS: the Ray to join where --ray-address says nothing."""
    return os.environ.get("RAY_ADDRESS") or None


def temp_folders() -> list[tuple[str, str]]:
    """(variable, folder) where temporary files were asked to be, as Ray reads it: RAY_TMPDIR, then TMPDIR."""
    return [(name, os.environ[name]) for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)]


def auth_mode() -> str | None:
    """RAY_AUTH_MODE: whether Ray's processes show each other a token."""
    return os.environ.get("RAY_AUTH_MODE")


def of_private_ray(token: str) -> dict[str, str | None]:
    """What a private Ray starts with: its own token, patience, no uv, no address. The user's own settings win where they
    are a matter of taste."""
    forced: dict[str, str | None] = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # see ray_private.keep_to_loopback
        "RAY_ADDRESS": None,
    }
    spinning = {} if "OMP_WAIT_POLICY" in os.environ else _BETWEEN_RANKS
    return {
        name: value for name, value in (_PREFERRED | spinning | _PATIENCE).items() if name not in os.environ
    } | forced


def of_joined_ray(token_mode: bool) -> dict[str, str | None]:
    """What this process joins a Ray with."""
    return {"RAY_AUTH_MODE": "token"} if token_mode else {}


def set_for_nccl(joining: int) -> None:
    """Set what this process's NCCL groups are made under; torch reads some of it once, with the first. joining: s that
    members may take to come together (torch's own limit is 30 minutes)."""
    _set(_NCCL | {"TORCH_NCCL_NONBLOCKING_TIMEOUT": str(joining)})


@contextmanager
def environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables (None: remove) for what is started inside the block; an embedding program's own stay as they were."""
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
