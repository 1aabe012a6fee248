"""The C planner as functions on numpy arrays of one layer. Knows pointers and shapes; what to call when is planner's.

Shape letters: W rows of loads, E experts, R ranks, S slots per rank.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.balance.shape import ClusterShape
from experts.errors import UserError
from experts.kernels.build import BuildFailed, best_target, library, processor_flags

FloatArray = npt.NDArray[np.float64]
_FOLDER = Path(__file__).parent / "kernels"
SOURCES = tuple(_FOLDER / name for name in ("improve.c", "layout.c", "rows.h", "problem.h"))


class _Problem(ctypes.Structure):
    """`problem` of problem.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("experts", "ranks", "slots_per_rank", "rows")),
        *((name, ctypes.c_void_p) for name in ("load", "weight", "pace", "node")),
        ("price", ctypes.c_double),
        ("far_price", ctypes.c_double),
        ("doubt", ctypes.c_double),
        ("max_moves", ctypes.c_int32),
        ("tried", ctypes.c_int32),
        ("spread", ctypes.c_int32),
        ("min_copies", ctypes.c_int32),
        ("nanoseconds", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """How far a search goes.

    price, far_price: tokens of the slowest rank a move must bring, within a node and between nodes
    doubt: standard errors that are taken off a gain first
    seconds: then it stops looking
    """

    price: float = 0.0
    far_price: float = 0.0
    doubt: float = 0.0
    max_moves: int = 1 << 20
    tried: int = 32
    seconds: float = 60.0


class LayerPlanner:
    """One layer's loads on a shape of ranks.

    load: [W, E] tokens
    weight: [W], adding up to 1

    Layouts are int16 [R*S]; every method returns a new one.
    """

    def __init__(self, shape: ClusterShape, load: FloatArray, weight: FloatArray) -> None:
        assert load.ndim == 2, load.shape
        assert len(load) == len(weight) >= 1, (load.shape, weight.shape)
        mean = (weight @ load)[None]
        self._load = np.ascontiguousarray(np.concatenate([load, mean]))
        self._weight = np.append(weight, 0.0)
        self._pace, self._node, self._shape = shape.pace, shape.node, shape
        self._mean = mean

    def layout(self, held: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
        """A full layout for the mean of the rows; only which slots are ABSENT is taken from `held`."""
        out = held.copy()
        failed = _library().tokenyard_layout(self._at(self._mean, SearchLimits()), out.ctypes.data)
        assert not failed, "the shape was checked to hold all experts"
        return out

    def repair(self, held: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
        """`held` with the copies on live ranks that the shape wants of every expert, where slots allow."""
        out = held.copy()
        placed = _library().tokenyard_repair(self._at(self._mean, SearchLimits()), out.ctypes.data)
        assert placed >= 0, "the shape was checked to hold all experts"
        return out

    def improve(self, held: npt.NDArray[np.int16], limits: SearchLimits) -> tuple[npt.NDArray[np.int16], float, float]:
        """(layout, mean tokens of the slowest rank before, after). Each expert needs a copy on a live rank."""
        out, scores = held.copy(), np.zeros(2)
        moves = _library().tokenyard_improve(self._at(self._load, limits), out.ctypes.data, scores.ctypes.data)
        if moves < 0:
            raise MemoryError("no memory for the planner")
        return out, float(scores[0]), float(scores[1])

    def times(self, held: npt.NDArray[np.int16]) -> FloatArray:
        """[W, R] tokens of each rank, over its speed, under the split."""
        out = np.empty((len(self._load), self._shape.ranks))
        if _library().tokenyard_times(self._at(self._load, SearchLimits()), held.ctypes.data, out.ctypes.data):
            raise MemoryError("no memory for the planner")
        return out[:-1]

    def _at(self, load: FloatArray, limits: SearchLimits) -> Any:
        return ctypes.byref(
            _Problem(
                load.shape[1], self._shape.ranks, self._shape.slots_per_rank, len(load), load.ctypes.data,
                self._weight.ctypes.data, self._pace.ctypes.data,
                None if self._node is None else self._node.ctypes.data,
                limits.price, limits.far_price, limits.doubt, limits.max_moves, limits.tried, self._shape.spread,
                self._shape.copies_kept(load.shape[1]), int(limits.seconds * 1e9),
            )
        )  # fmt: skip


@cache
def _library() -> Any:
    """The built library. Raises UserError where there is no compiler: the planner has no other form."""
    try:
        built = ctypes.CDLL(str(library(best_target(processor_flags()), SOURCES)))
    except (BuildFailed, OSError) as error:
        raise UserError(str(error), "a C compiler (cc), which the planner needs", "this machine") from None
    pointer = ctypes.c_void_p
    for name, count in (
        ("tokenyard_layout", 2), ("tokenyard_repair", 2), ("tokenyard_improve", 3), ("tokenyard_times", 3)
    ):  # fmt: skip
        function = getattr(built, name)
        function.argtypes, function.restype = [pointer] * count, ctypes.c_int
    return built


def check_available() -> None:
    """Raise UserError where the planner can't be built."""
    _library()
