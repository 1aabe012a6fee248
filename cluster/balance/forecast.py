"""Forecast: the rows of loads that the next interval is planned for, from past loads only. Pure numpy.

A short window follows traffic that moves, a long one averages noise away, a trend sees further on smooth drift and
misleads on bursts. Nothing decides between them but which would have been right before: each is judged, per layer, on
the intervals just past. Shape letters: T steps, L layers, E experts, W rows.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
ROWS = 20
WINDOWS = (20, 8)  # steps, the first unless another was nearer
EDGE = 0.9  # how much nearer another guess must have been
_JUDGED = ((1, 1.0), (2, 0.5), (3, 0.25))  # intervals ago, weight


@dataclass(frozen=True, slots=True)
class Rows:
    """loads: float64 [L, W, E] tokens
    weight: float64 [W], adding up to 1
    chosen: per layer, the forecast's name
    """

    loads: FloatArray
    weight: FloatArray
    chosen: tuple[str, ...]


def forecast(
    history: npt.NDArray[np.int64], interval: int, windows: tuple[int, ...] = WINDOWS, trend: bool = True
) -> Rows:
    """Rows for the next `interval` steps. history: int64 [T, L, E], T >= 1, the newest last; may hold steps without tokens."""
    history = history[history.sum(axis=(1, 2)) > 0] if len(history) else history
    assert len(history), "a forecast needs a step with tokens"
    names = [f"window {w}" for w in windows] + (["trend"] if trend else [])
    errors = np.zeros((len(names), history.shape[1]))
    for ago, trust in _JUDGED:
        past, came = history[: -ago * interval], history[len(history) - ago * interval :][:interval]
        if len(past) >= min(windows):
            truth = came.mean(axis=0)
            for i, guess in enumerate(_guesses(past, interval, windows, trend)):
                miss = np.abs(guess - truth).sum(axis=1) / np.maximum(truth.sum(axis=1), 1)
                errors[i] += trust * miss * (EDGE if i == 0 else 1.0)
    best = errors.argmin(axis=0)
    guesses = _guesses(history, interval, windows, trend)
    mean = np.stack([guesses[b][layer] for layer, b in enumerate(best)])
    rows = history[-ROWS:].astype(np.float64).transpose(1, 0, 2)
    at = rows.mean(axis=1, keepdims=True)
    scaled = rows * np.divide(mean[:, None], at, out=np.ones_like(at), where=at > 0)
    scaled += np.where(at > 0, 0.0, mean[:, None])
    weight = np.full(rows.shape[1], 1.0 / rows.shape[1])
    return Rows(np.ascontiguousarray(scaled), weight, tuple(names[b] for b in best))


def rows_of(loads: npt.NDArray[np.int64]) -> Rows:
    """Steps [T, L, E] as rows that count alike."""
    rows = np.ascontiguousarray(loads.astype(np.float64).transpose(1, 0, 2))
    return Rows(rows, np.full(len(loads), 1.0 / len(loads)), ())


def _guesses(past: npt.NDArray[np.int64], interval: int, windows: tuple[int, ...], trend: bool) -> list[FloatArray]:
    """[L, E] mean load of the next interval, by each way of guessing."""
    out = [past[-w:].mean(axis=0) for w in windows]
    if trend:
        half = min(interval, max(len(past) // 2, 1))
        newer, older = past[-half:].mean(axis=0), past[-2 * half : -half].mean(axis=0) if len(past) > half else 0.0
        ahead = (interval + half) / 2 / half if len(past) >= 2 * half else 0.0
        out.append(np.clip(newer + ahead * (newer - older), 0.3 * newer, 3.0 * newer + 1.0))
    return out
