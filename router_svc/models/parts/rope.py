"""Rotary position embedding, rotate-half form: dimension i turns with i + D/2. Knows no model family.

Shape letters: T tokens, A heads, D head_dim.
"""

import math

import torch

from router_svc.models.spec import RopeSpec


def inverse_frequencies(spec: RopeSpec) -> torch.Tensor:
    """[D/2] float32, radians per position."""
    exponents = torch.arange(0, spec.dim, 2, dtype=torch.int64).float() / spec.dim
    theta = spec.theta if spec.alpha == 1 else spec.theta * spec.alpha ** (spec.dim / (spec.dim - 2))
    plain = 1.0 / (theta**exponents)
    if spec.kind == "linear":
        return plain / spec.factor
    if spec.kind == "yarn":
        return _yarn(spec, plain)
    return plain


def _yarn(spec: RopeSpec, plain: torch.Tensor) -> torch.Tensor:
    """YaRN (arXiv 2309.00071): long wavelengths are stretched by `factor`, short ones kept, a ramp between."""

    def turns(rotations: float) -> float:
        return spec.dim * math.log(spec.original_max_position / (rotations * 2 * math.pi)) / (2 * math.log(spec.theta))

    low, high = turns(spec.beta_fast), turns(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.dim - 1)
    ramp = ((torch.arange(spec.dim // 2).float() - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain / spec.factor * ramp + plain * (1 - ramp)


class Rope:
    """cos and sin for the positions of a step, and their use on q and k."""

    def __init__(self, spec: RopeSpec, device: str) -> None:
        self._frequencies = inverse_frequencies(spec).to(device)
        self._factor = spec.attention_factor

    def angles(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin) as `rotate` takes them: [T, 1, D] in `dtype`, computed in float32 for positions [T] int64."""
        turns = (positions.float()[:, None] * self._frequencies[None, :])[:, None, :]
        cos, sin = turns.cos() * self._factor, turns.sin() * self._factor
        return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x: [T, A, D] turned by its positions. sin carries the minus sign of the first half."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
