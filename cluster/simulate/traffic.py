"""Made traffic: loads per step, layer and expert for the regimes that balancing policies are judged on. Seeded, numpy only.

Every token picks k distinct experts by exponential clocks: expert e is among the first k with probability
1 - exp(-c w_e), c such that these add up to k. Counts are binomial, weights drift by regime, and every step adds
log-normal noise, because a batch is few requests. Shape letters: T steps, L layers, E experts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from experts.errors import UserError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Traffic:
    """What to make.

    tokens: of all ranks in a step
    skew: exponent s of the rank-ordered weights, None = the regime's
    noise: sigma of the log-normal step noise, None = the regime's
    """

    regime: str
    steps: int = 500
    layers: int = 32
    experts: int = 64
    top_k: int = 8
    tokens: int = 2048
    seed: int = 0
    skew: float | None = None
    noise: float | None = None

    def check(self) -> None:
        """Raise UserError for an unknown regime or a shape that makes no sense."""
        if self.regime not in REGIMES:
            raise UserError(f"regime {self.regime!r}", f"one of {', '.join(REGIMES)}", "--regime")
        for name in ("steps", "layers", "experts", "top_k", "tokens"):
            if getattr(self, name) < 1:
                raise UserError(str(getattr(self, name)), "at least 1", f"--{name.replace('_', '-')}")
        if self.top_k > self.experts:
            raise UserError(f"{self.top_k} of {self.experts} experts", "at most one pick per expert", "--top-k")


@dataclass(frozen=True, slots=True)
class _Regime:
    skew: float
    noise: float
    log_weights: Callable[[np.random.Generator, int, int, float], FloatArray]  # (rng, T, E, skew) -> [T, E]


def make_loads(traffic: Traffic) -> IntArray:
    """[T, L, E] int64 tokens routed to each expert. Layers draw independently; a shift hits all at the same steps."""
    traffic.check()
    regime = REGIMES[traffic.regime]
    skew = regime.skew if traffic.skew is None else traffic.skew
    noise = regime.noise if traffic.noise is None else traffic.noise
    loads = np.empty((traffic.steps, traffic.layers, traffic.experts), dtype=np.int64)
    for layer, rng in enumerate(np.random.default_rng(traffic.seed).spawn(traffic.layers)):
        log_weights = regime.log_weights(rng, traffic.steps, traffic.experts, skew)
        log_weights += noise * rng.standard_normal(log_weights.shape)
        loads[:, layer] = rng.binomial(traffic.tokens, inclusion(np.exp(log_weights), traffic.top_k))
    return loads


def inclusion(weights: FloatArray, top_k: int) -> FloatArray:
    """[..., E] probabilities, adding up to top_k, that an expert is among the first top_k exponential clocks."""
    weights = weights / weights.sum(axis=-1, keepdims=True)
    if top_k == weights.shape[-1]:
        return np.ones_like(weights)
    rate = np.full((*weights.shape[:-1], 1), float(top_k))
    for _ in range(100):  # Newton from below: the sum is concave in the rate, so no step overshoots
        silent = np.exp(-rate * weights)
        missing = top_k - (1 - silent).sum(axis=-1, keepdims=True)
        if missing.max() < 1e-9 * top_k:
            break
        rate += missing / (weights * silent).sum(axis=-1, keepdims=True)
    chance: FloatArray = 1 - np.exp(-rate * weights)
    return chance


def _ranked(rng: np.random.Generator, experts: int, skew: float) -> FloatArray:
    """[E] log weights -skew ln(place) under a random order."""
    return -skew * np.log(rng.permutation(experts) + 1.0)


def _steady(rng: np.random.Generator, steps: int, experts: int, skew: float) -> FloatArray:
    return np.tile(_ranked(rng, experts, skew), (steps, 1))


def _drift(rng: np.random.Generator, steps: int, experts: int, skew: float) -> FloatArray:
    """From one order to a second over the first half, on to a third over the second; the skew stays as it is."""
    stops = [_ranked(rng, experts, skew) for _ in range(3)]
    spread = stops[0].std()
    out = np.empty((steps, experts))
    for t in range(steps):
        place = 2.0 * t / steps
        leg, part = int(place), place - int(place)
        blend = (1 - part) * stops[leg] + part * stops[leg + 1]
        blend -= blend.mean()
        out[t] = blend * (spread / blend.std() if blend.std() > 0 else 1.0)
    return out


def _shift(rng: np.random.Generator, steps: int, experts: int, skew: float) -> FloatArray:
    """A fresh order at a quarter of the steps and every third of them after."""
    out = _steady(rng, steps, experts, skew)
    for start in range(steps // 4, steps, max(steps // 3, 1)):
        out[start:] = _ranked(rng, experts, skew)
    return out


def _burst(rng: np.random.Generator, steps: int, experts: int, skew: float) -> FloatArray:
    """A 32nd of the experts get 4 to 10 times their weight for 10 to 30 steps, then a pause of 5 to 29."""
    out = _steady(rng, steps, experts, skew)
    t = int(rng.integers(5, 30))
    while t < steps:
        end = t + int(rng.integers(10, 31))
        hot = rng.choice(experts, max(experts // 32, 1), replace=False)
        out[t:end, hot] += np.log(rng.uniform(4.0, 10.0, len(hot)))
        t = end + int(rng.integers(5, 30))
    return out


def _corr(rng: np.random.Generator, steps: int, experts: int, skew: float) -> FloatArray:
    """Six groups of experts that rise and fall together, each an AR(1) of about 20 steps' memory and unit variance."""
    group = rng.integers(0, 6, experts)
    memory = 0.95
    level = rng.standard_normal(6)
    out = _steady(rng, steps, experts, skew)
    for t in range(steps):
        out[t] += 0.6 * level[group]
        level = memory * level + np.sqrt(1 - memory**2) * rng.standard_normal(6)
    return out


REGIMES: dict[str, _Regime] = {
    "uniform": _Regime(0.0, 0.05, _steady),
    "zipf": _Regime(0.6, 0.15, _steady),
    "drift": _Regime(0.8, 0.15, _drift),
    "shift": _Regime(0.8, 0.15, _shift),
    "burst": _Regime(0.5, 0.15, _burst),
    "corr": _Regime(0.6, 0.15, _corr),
}
