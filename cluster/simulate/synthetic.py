"""Synthetic: what stands in for a model in a simulation over real actors: made tokens, and experts that take their time."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from experts.pace import Pace


@dataclass(frozen=True, slots=True, eq=False)
class Synthetic:
    """tokens: of a step; loads: int64 [T, L, E] that the gate follows; pace: of the experts."""

    tokens: int
    loads: npt.NDArray[np.int64]
    pace: Pace
