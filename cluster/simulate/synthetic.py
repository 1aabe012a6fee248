"""Synthetic: what stands in for a model in a simulation over real actors: made tokens, and experts that take their time."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from experts.pace import Pace


@dataclass(frozen=True, slots=True, eq=False)
class Synthetic:
    """tokens: of a step; loads: int64 [T, L, E] that the gate follows; pace: of the experts; speeds: relative, of each
    rank, empty = all alike."""

    tokens: int
    loads: npt.NDArray[np.int64]
    pace: Pace
    speeds: tuple[float, ...] = ()

    def pace_of(self, rank: int) -> Pace:
        """Of one rank's experts."""
        return replace(self.pace, seconds=self.pace.seconds / self.speeds[rank]) if self.speeds else self.pace
