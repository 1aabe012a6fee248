"""Plots of `bench balance --json`: `python -m cluster.bench.balance_plots FILE.jsonl FOLDER` writes one SVG per case."""

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from cluster.simulate.svg import Axes, bars, lines

_SHOWN = ("none", "eplb", "eplb every 20", "tokenyard", "oracle")


def excess_bars(rows: list[dict[str, object]]) -> dict[str, str]:
    """By case: bars of mean excess over seeds, grouped by regime."""
    table: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row["excess"] is not None and row["policy"] in _SHOWN:
            table[str(row["config"]), str(row["regime"]), str(row["policy"])].append(100 * float(str(row["excess"])))
    out = {}
    for case in dict.fromkeys(key[0] for key in table):
        regimes = list(dict.fromkeys(key[1] for key in table if key[0] == case))
        series = [
            (policy, [float(np.mean(table[case, regime, policy])) for regime in regimes])
            for policy in _SHOWN
            if (case, regimes[0], policy) in table
        ]
        out[case] = bars(Axes(f"{case}: busiest rank over the mean", "traffic", "excess, %", 820, 300), regimes, series)
    return out


def curves(rows: list[dict[str, object]]) -> str:
    """Excess against moves, a line per case and regime; rows of `bench balance --curve`."""
    table: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if str(row["policy"]).startswith("tokenyard, horizon"):
            name = f"{row['config']}, {row['regime']}"
            table[name].append((float(str(row["moves_per_layer"])), 100 * float(str(row["excess"]))))
    series = []
    for name, points in table.items():
        ordered = np.array(sorted(points))
        series.append((name, ordered[:, 0], ordered[:, 1]))
    return lines(
        Axes("Excess against moves", "experts moved per layer and plan", "excess, %", 820, 300), series, marks=True
    )


def main() -> None:
    """See the module."""
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    for case, chart in excess_bars(rows).items():
        (folder / f"balancing-{case}.svg").write_text(_standing(chart))
    if any(str(row["policy"]).startswith("tokenyard, horizon") for row in rows):
        (folder / "balancing-curve.svg").write_text(_standing(curves(rows)))


def _standing(chart: str) -> str:
    """A chart as a file of its own: on white, since nothing around it gives a colour."""
    return chart.replace("<title>", '<rect width="100%" height="100%" fill="#fff"/><title>', 1).replace(
        "currentColor", "#222"
    )


if __name__ == "__main__":
    main()
