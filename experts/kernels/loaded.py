"""This process's C kernels as plain functions on addresses. Knows no torch, so that planning alone does not load it."""

import ctypes
import logging
from functools import cache
from typing import Any

from experts import env
from experts.errors import UserError
from experts.kernels.build import BuildFailed, best_target, library, processor_flags

log = logging.getLogger(__name__)

_P, _I, _N, _U = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_uint32
_SPLIT: Any = [_P, _P, _I, ctypes.c_int, _P]
_QUOTAS: Any = [_P, _P, ctypes.c_int, _P]
_COUNT_LOADS: Any = [_P, _P, _N, _N, _N, _P]
_SWIGLU: Any = [ctypes.c_int, _P, _P, _P, _P, _P, _P, _I, _I, _I, _I, _I, ctypes.c_int]
_LINKS: dict[str, tuple[Any, Any]] = {  # of links.c and link_tokens.c: what they return, and take
    "hub": (_P, []),
    "free_hub": (None, [_P]),
    "peer": (_P, [ctypes.c_int, _U, _U, ctypes.c_uint64]),
    "free_peer": (None, [_P]),
    "usable": (ctypes.c_int, [_P, _P, _U]),
    "died": (None, [_P, _P]),
    "circle": (_P, [_P, _N, _N, _U, _P]),
    "free_circle": (None, [_P]),
    "missing": (_P, [_P]),
    "bytes": (_P, [_P]),
    "wake": (None, [_P]),
    "abort": (None, [_P]),
    "idle": (ctypes.c_int, [_P, _I]),
    "meet": (ctypes.c_int, [_P, _P, _P, _I, _P]),
    "header": (ctypes.c_int, [_P, _P, ctypes.c_uint64, _N, _I, _P]),
    "traffic": (_P, [_N, _N, _N, _N, _N, _N, _P, _P]),
    "free_traffic": (None, [_P]),
    "step": (None, [_P, ctypes.c_uint64, _U, _I, _N, _N]),
    "dispatch": (ctypes.c_int, [_P, _P, _N, _P, _P]),
    "collect": (ctypes.c_int, [_P, _P, _N, _P, _P, _P, _P, _P, _P, _P]),
    "give_back": (ctypes.c_int, [_P, _P, _N, _P, _P, _P]),
    "sum": (ctypes.c_int, [_P, _P, _N, _P, _P, _P]),
    "ask": (ctypes.c_int, [_P, _P, _N, _P, _P, _P]),
    "ids": (ctypes.c_int, [_P, _P, _N, _P, _P, _P, _P]),
}


_LIFE: dict[str, tuple[Any, Any]] = {  # of life.c
    "word": (ctypes.c_int, []),
    "wait": (ctypes.c_int, [_P, _N, _P, _U]),
    "wake": (None, [_P]),
}


class Functions:
    """Functions of a library whose names begin alike, each an attribute by the rest of its name."""

    def __init__(self, library: Any, begin: str, table: dict[str, tuple[Any, Any]]) -> None:
        for name, (returns, takes) in table.items():
            function = getattr(library, f"{begin}{name}")
            function.restype, function.argtypes = returns, takes
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:  # for the type checker
        raise AttributeError(name)


class LoadedKernels:
    """One built library: its functions, with the types of their arguments."""

    def __init__(self, target: str) -> None:
        """Builds it if need be. Raises BuildFailed."""
        path = library(target)
        try:
            functions = ctypes.CDLL(str(path))
        except OSError as error:
            raise BuildFailed(str(error)) from error
        self.target = target
        self.has_amx = target == "avx512" and "amx_bf16" in processor_flags()
        self.swiglu: Any = functions.tokenyard_swiglu
        self.swiglu.argtypes, self.swiglu.restype = _SWIGLU, ctypes.c_int
        self.split: Any = functions.tokenyard_split
        self.split.argtypes, self.split.restype = _SPLIT, None
        self.quotas: Any = functions.tokenyard_quotas
        self.quotas.argtypes, self.quotas.restype = _QUOTAS, None
        self.count_loads: Any = functions.tokenyard_count_loads
        self.count_loads.argtypes, self.count_loads.restype = _COUNT_LOADS, None
        self.links = Functions(functions, "tokenyard_links_", _LINKS)
        self.life = Functions(functions, "tokenyard_life_", _LIFE)


@cache
def loaded() -> LoadedKernels | None:
    """This process's kernels; None where torch does the work, which is said once with its reason."""
    choice = env.kernel_choice()
    if choice == "torch":
        return None
    target = best_target(processor_flags()) if choice == "auto" else choice
    try:
        return LoadedKernels(target)
    except BuildFailed as error:
        if choice != "auto":
            raise UserError(str(error), f"a C compiler that builds {choice} kernels", "TOKENYARD_KERNELS") from error
        log.warning("experts run on torch's kernels, which are slower: no C kernels for %s (%s)", target, error)
        return None
