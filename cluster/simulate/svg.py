"""Charts as SVG text: lines, bars and heat maps, with axes, units and a legend. No library, no script."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
# Okabe-Ito, which eyes that see no red or green can tell apart
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_LEFT, _TOP, _BOTTOM, _RIGHT = 62, 34, 44, 16
_RAMP = ((255, 255, 229), (254, 196, 79), (217, 95, 14), (102, 37, 6))  # low to high, also in grey


@dataclass(frozen=True, slots=True)
class Axes:
    """Texts of a chart.

    width, height: pixels of the whole
    """

    title: str
    x: str
    y: str
    width: int = 760
    height: int = 280


def lines(axes: Axes, series: Sequence[tuple[str, FloatArray, FloatArray]], marks: bool = False) -> str:
    """Lines through (x, y) of each named series; y from 0. marks: with a point at each value."""
    xs = np.concatenate([x for _, x, _ in series])
    top = _round_up(max(float(y.max(initial=0)) for _, _, y in series))
    low, high = float(xs.min()), float(xs.max())
    wide, tall = axes.width - _LEFT - _RIGHT, axes.height - _TOP - _BOTTOM
    parts = [_frame(axes, _ticks(low, high), _ticks(0, top), (low, high, 0.0, top))]
    for i, (name, x, y) in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        px = _LEFT + (x - low) / ((high - low) or 1) * wide
        py = _TOP + tall * (1 - y / (top or 1))
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(px, py, strict=True))
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.8" points="{points}"/>')
        if marks:
            parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in zip(px, py, strict=True)]
        at = _LEFT + 10 + i * 150
        parts.append(
            f'<rect x="{at}" y="{_TOP - 14}" width="12" height="4" fill="{colour}"/>'
            f'<text x="{at + 17}" y="{_TOP - 8}">{escape(name)}</text>'
        )
    return _svg(axes, parts)


def bars(axes: Axes, groups: Sequence[str], series: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Bars side by side in named groups, one per series; each with its value."""
    top = _round_up(max(max(values) for _, values in series))
    wide, tall = axes.width - _LEFT - _RIGHT, axes.height - _TOP - _BOTTOM
    parts = [_frame(axes, (), _ticks(0, top), (0.0, 1.0, 0.0, top))]
    room = wide / len(groups)
    each = 0.8 * room / len(series)
    for g, group in enumerate(groups):
        x = _LEFT + g * room
        parts.append(f'<text x="{x + room / 2:.1f}" y="{_TOP + tall + 16}" text-anchor="middle">{escape(group)}</text>')
        for i, (_, values) in enumerate(series):
            tip = tall * values[g] / (top or 1)
            left = x + 0.1 * room + i * each
            parts.append(
                f'<rect x="{left:.1f}" y="{_TOP + tall - tip:.1f}" width="{each * 0.92:.1f}" height="{tip:.1f}" '
                f'fill="{COLOURS[i % len(COLOURS)]}"/>'
                f'<text class="s" x="{left + each / 2:.1f}" y="{_TOP + tall - tip - 3:.1f}" text-anchor="middle">'
                f"{values[g]:.3g}</text>"
            )
    for i, (name, _) in enumerate(series):
        at = _LEFT + 10 + i * 150
        parts.append(
            f'<rect x="{at}" y="{_TOP - 16}" width="10" height="10" fill="{COLOURS[i % len(COLOURS)]}"/>'
            f'<text x="{at + 15}" y="{_TOP - 7}">{escape(name)}</text>'
        )
    return _svg(axes, parts)


def heat(axes: Axes, table: FloatArray, low: float, high: float, x_end: float, unit: str) -> str:
    """A heat map: table [rows, columns], colours from `low` to `high`; the x axis ends at `x_end`."""
    rows, columns = table.shape
    wide, tall = axes.width - _LEFT - _RIGHT - 70, axes.height - _TOP - _BOTTOM
    parts = []
    w, h = wide / columns, tall / rows
    for r in range(rows):
        c = 0
        shades = [_colour((v - low) / ((high - low) or 1)) for v in table[r]]
        while c < columns:  # runs of one colour as one rectangle
            end = c
            while end + 1 < columns and shades[end + 1] == shades[c]:
                end += 1
            parts.append(
                f'<rect x="{_LEFT + c * w:.1f}" y="{_TOP + r * h:.1f}" width="{(end - c + 1) * w + 0.4:.1f}" '
                f'height="{h + 0.4:.1f}" fill="{shades[c]}"/>'
            )
            c = end + 1
    x_ticks = [(_LEFT + wide * t / x_end, t) for t in _ticks(0, x_end)]
    y_ticks = [(_TOP + tall * (t + 0.5) / rows, t) for t in range(0, rows, max(rows // 8, 1))]
    parts += [f'<text x="{p:.1f}" y="{_TOP + tall + 16}" text-anchor="middle">{t:g}</text>' for p, t in x_ticks]
    parts += [f'<text x="{_LEFT - 6}" y="{p + 4:.1f}" text-anchor="end">{t}</text>' for p, t in y_ticks]
    side = axes.width - _RIGHT - 52
    for i in range(40):
        y = _TOP + tall * (39 - i) / 40
        parts.append(
            f'<rect x="{side}" y="{y:.1f}" width="12" height="{tall / 40 + 0.5:.1f}" fill="{_colour(i / 39)}"/>'
        )
    parts.append(f'<text x="{side + 16}" y="{_TOP + 10}">{high:.3g}{unit}</text>')
    parts.append(f'<text x="{side + 16}" y="{_TOP + tall}">{low:.3g}{unit}</text>')
    return _svg(axes, [_titles(axes), *parts])


def _svg(axes: Axes, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {axes.width} {axes.height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="currentColor"><title>{escape(axes.title)}</title>'
        "<style>.s{font-size:9px}</style>" + "".join(parts) + "</svg>"
    )


def _titles(axes: Axes) -> str:
    middle = _TOP + (axes.height - _TOP - _BOTTOM) / 2
    centre = _LEFT + (axes.width - _LEFT - _RIGHT) / 2
    return (
        f'<text x="{_LEFT}" y="14" font-size="13" font-weight="600">{escape(axes.title)}</text>'
        f'<text x="{centre}" y="{axes.height - 8}" text-anchor="middle">{escape(axes.x)}</text>'
        f'<text transform="rotate(-90 14 {middle})" x="14" y="{middle}" text-anchor="middle">{escape(axes.y)}</text>'
    )


def _frame(
    axes: Axes, x_ticks: Sequence[float], y_ticks: Sequence[float], span: tuple[float, float, float, float]
) -> str:
    wide, tall = axes.width - _LEFT - _RIGHT, axes.height - _TOP - _BOTTOM
    x0, x1, y0, y1 = span
    out = [_titles(axes)]
    for t in y_ticks:
        y = _TOP + tall * (1 - (t - y0) / ((y1 - y0) or 1))
        out.append(
            f'<line x1="{_LEFT}" x2="{_LEFT + wide}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" stroke-opacity=".18"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{t:g}</text>'
        )
    for t in x_ticks:
        x = _LEFT + wide * (t - x0) / ((x1 - x0) or 1)
        out.append(f'<text x="{x:.1f}" y="{_TOP + tall + 16}" text-anchor="middle">{t:g}</text>')
    return "".join(out)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between."""
    span = (high - low) or 1
    step = 10 ** np.floor(np.log10(span / 5))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 6)
    first = np.ceil(low / step) * step
    return [float(round(t, 10)) for t in np.arange(first, high + step * 1e-6, step)]


def _round_up(value: float) -> float:
    if value <= 0:
        return 1.0
    unit = 10 ** np.floor(np.log10(value))
    return float(next(m * unit for m in (1, 1.5, 2, 3, 4, 5, 7.5, 10) if m * unit >= value * 1.05 or m == 10))


def _colour(part: float) -> str:
    place = min(max(round(part * 31) / 31, 0.0), 1.0) * (len(_RAMP) - 1)  # 32 shades, so that runs are long
    i = min(int(place), len(_RAMP) - 2)
    mix = [round(a + (b - a) * (place - i)) for a, b in zip(_RAMP[i], _RAMP[i + 1], strict=True)]
    return "#" + "".join(f"{c:02x}" for c in mix)
