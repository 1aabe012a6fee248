"""RankSpeeds: which ranks compute slower or faster than the others, from the time that their own experts took. Pure numpy.

One time model for all ranks, seconds = a x layers + b x work, is fitted to the newest rows; a rank that takes longer than
it says is slow. A rank with few tokens is therefore not slow only because starting a layer costs time, too.
Shape letters: W rows, R ranks.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
_TURNS = 3  # judgements in a row that must agree before a speed counts
_ALIKE = 0.25  # relative difference below which ranks count as equally fast, and a known speed as unchanged
_LEAST, _MOST = 0.05, 4.0
_FITS = 4


class RankSpeeds:
    """Remembers what was judged before, so that one disturbed moment changes nothing."""

    def __init__(self) -> None:
        self._known: dict[int, float] = {}
        self._doubts: dict[int, int] = {}  # judgements in a row that contradict what is known

    def forget(self, rank: int) -> None:
        """Another process sits on a seat."""
        self._known.pop(rank, None)
        self._doubts.pop(rank, None)

    def judge(self, ranks: Sequence[int], work: FloatArray, seconds: FloatArray, steps: FloatArray) -> None:
        """Take in what a number of rows tell.

        work, seconds: [W, R] tokens' worth of computing, and its time, of each rank
        steps: [W] that a row stands for
        """
        seen = relative_speeds(work, seconds, steps)
        for rank, speed in zip(ranks, seen.tolist(), strict=True):
            known = self._known.get(rank, 1.0)
            if abs(speed / known - 1) <= _ALIKE:
                self._doubts[rank] = 0
                continue
            self._doubts[rank] = self._doubts.get(rank, 0) + 1
            if self._doubts[rank] >= _TURNS:
                self._known[rank] = 1.0 if abs(speed - 1) <= _ALIKE else round(min(max(speed, _LEAST), _MOST), 2)
                self._doubts[rank] = 0

    def of(self, ranks: int) -> tuple[float, ...]:
        """Relative speeds of seats 0 .. ranks-1; empty while all are alike."""
        speeds = tuple(self._known.get(rank, 1.0) for rank in range(ranks))
        return speeds if any(speed != 1.0 for speed in speeds) else ()


def relative_speeds(work: FloatArray, seconds: FloatArray, steps: FloatArray) -> FloatArray:
    """[R] speed of each rank over the median rank's; 1 for ranks without work. See RankSpeeds.judge for the shapes.

    Alternates between the time model, fitted to times as an average rank would take, and each rank's speed under it.
    """
    speed = np.ones(work.shape[1])
    did = (work.sum(axis=0) > 0) & (seconds.sum(axis=0) > 0)
    if did.sum() < 2:
        return speed
    work, seconds = work[:, did], seconds[:, did]
    begun = np.broadcast_to(steps[:, None], work.shape).ravel()
    columns = np.stack([begun, work.ravel()], axis=1)
    for _ in range(_FITS):
        fixed, per_token = np.linalg.lstsq(columns, (seconds * speed[did]).ravel(), rcond=None)[0]
        if fixed < 0 or per_token < 0:  # too alike to tell them apart
            fixed, per_token = 0.0, 1.0
        found = (fixed * steps.sum() + per_token * work.sum(axis=0)) / seconds.sum(axis=0)
        speed[did] = found / np.median(found)
    return speed
