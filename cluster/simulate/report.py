"""`simulate --report FILE.html`: one page that needs nothing else, for a talk: loads, excess, moves and replicas."""

import itertools
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import numpy.typing as npt

from cluster.simulate.replay import Replay
from cluster.simulate.svg import Axes, bars, heat, lines

_COLUMNS = 240  # of a heat map
_ROWS = 64
_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:860px;margin:2rem auto;padding:0 1rem;background:#fff;color:#1b1b1b}
@media(prefers-color-scheme:dark){body{background:#16181c;color:#e8e8e8}}
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.25rem .8rem;text-align:right;border-bottom:1px solid #8885}
th:first-child,td:first-child{text-align:left}svg{width:100%;height:auto;margin:.6rem 0}h2{margin-top:2rem}
"""


def html_report(done: Sequence[Replay], settings: Mapping[str, object]) -> str:
    """The page. settings: what was simulated, by name, the seed among them."""
    first = done[0]
    what = ", ".join(f"{name} {value}" for name, value in settings.items())
    body = [f"<h1>Balancing {first.placement.ranks} ranks</h1><p>{escape(what)}.</p>", _summary(done)]
    steps = np.arange(first.first_step, first.first_step + len(first.busiest), dtype=np.float64)
    body.append("<h2>Excess over perfect</h2>")
    body.append("<p>Tokens of the busiest rank over the mean rank's, minus 1, over all layers of a step.</p>")
    series = []
    for one in done:
        share = 100 * (one.busiest.sum(axis=1) / np.maximum(one.mean.sum(axis=1), 1e-12) - 1)
        at = one.first_step + np.arange(len(share), dtype=np.float64)
        series.append((one.policy, _binned(at, 400), _binned(share, 400)))
    body.append(lines(Axes("Excess per step", "step", "excess, %"), series))
    body.append("<h2>Load of each rank</h2><p>Tokens over the mean rank's, over all layers; 1 is perfect.</p>")
    low = min(float(np.quantile(one.rank_share, 0.001)) for one in done)
    high = max(float(np.quantile(one.rank_share, 0.999)) for one in done)
    for one in done:
        table = _shrunk(one.rank_share.T.astype(np.float64))
        axes = Axes(one.policy, f"step (from {one.first_step})", "rank", height=230)
        body.append(heat(axes, table, min(low, 0.95), max(high, 1.05), float(len(steps)), ""))
    moving = [one for one in done if one.moves.size]
    if moving:
        body.append("<h2>Moves</h2><p>Experts fetched by ranks, per layer, at each plan.</p>")
        curves = [(one.policy, np.arange(len(one.moves), dtype=np.float64), one.moves.mean(axis=1)) for one in moving]
        body.append(lines(Axes("Moves per layer", "plan", "experts"), curves, marks=len(moving[0].moves) < 60))
    body.append("<h2>Replicas at the end</h2><p>Copies of each expert, by layer.</p>")
    for one in done:
        copies = one.placement.replicas().astype(np.float64)
        axes = Axes(one.policy, "expert", "layer", height=230)
        body.append(heat(axes, copies, 1, max(float(copies.max()), 2), float(copies.shape[1]), ""))
    excess = [("excess, %", [100 * one.excess for one in done])]
    body.insert(2, bars(Axes("Excess", "policy", "%", height=240), [one.policy for one in done], excess))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>tokenyard: balancing</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _summary(done: Sequence[Replay]) -> str:
    head = "".join(
        f"<th>{name}</th>"
        for name in ("policy", "excess", "balancedness", "experts moved", "per layer and plan", "plan")
    )
    rows = "".join(
        f"<tr><td>{escape(one.policy)}</td><td>{100 * one.excess:.2f} %</td><td>{one.balancedness:.4f}</td>"
        f"<td>{int(one.moves.sum())}</td><td>{one.moves_per_layer:.2f}</td>"
        f"<td>{1e3 * float(one.planner_seconds.mean() if len(one.planner_seconds) else 0):.1f} ms</td></tr>"
        for one in done
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _binned(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """Means of about `count` runs."""
    if len(values) <= count:
        return values
    edges = np.linspace(0, len(values), count + 1).astype(int)
    return np.array([values[a:b].mean() for a, b in itertools.pairwise(edges)])


def _shrunk(table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[ranks, steps] with fewer rows (the busiest of each run) and columns (means)."""
    columns = np.stack([_binned(row, _COLUMNS) for row in table])
    if len(columns) <= _ROWS:
        return columns
    edges = np.linspace(0, len(columns), _ROWS + 1).astype(int)
    return np.stack([columns[a:b].max(axis=0) for a, b in itertools.pairwise(edges)])
