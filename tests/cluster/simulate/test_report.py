"""The report: one well-formed page that asks for nothing from outside, with the numbers of the run in it."""

import re
import xml.dom.minidom
from pathlib import Path

import numpy as np
import pytest

from cluster.balance.policies.registry import load_policy
from cluster.balance.shape import ClusterShape
from cluster.simulate.replay import Replay, ReplaySettings, replay
from cluster.simulate.report import html_report
from cluster.simulate.svg import Axes, bars, heat, lines
from cluster.simulate.traffic import Traffic, make_loads


@pytest.fixture(scope="module")
def done() -> list[Replay]:
    loads = make_loads(Traffic("drift", steps=120, layers=2, experts=16, top_k=2, tokens=256))
    return [replay(loads, ClusterShape(4, 5), load_policy(name), ReplaySettings()) for name in ("none", "tokenyard")]


def test_the_page_stands_alone_and_tells_the_run(done: list[Replay], tmp_path: Path) -> None:
    page = html_report(done, {"regime": "drift", "seed": 7, "model": "<script>"})
    assert "seed 7" in page
    assert "<script" not in page, "names are escaped, and there is no script"
    assert not re.search(r"(src|href)=|url\(|https?://(?!www\.w3\.org/2000/svg)", page)
    for one in done:
        assert f"{100 * one.excess:.2f} %" in page
        assert f"<td>{int(one.moves.sum())}</td>" in page
    charts = re.findall(r"<svg.*?</svg>", page)
    assert len(charts) >= 7
    for chart in charts:
        xml.dom.minidom.parseString(chart)
    assert len(page) < 3_000_000


def test_charts_of_nothing_and_of_one_value() -> None:
    axes = Axes("t <&>", "x", "y")
    one = np.array([0.0])
    for chart in (
        lines(axes, [("a", one, one)]),
        bars(axes, ["g"], [("s", [0.0])]),
        heat(axes, np.zeros((1, 1)), 0, 0, 1.0, ""),
    ):
        xml.dom.minidom.parseString(chart)
        assert "nan" not in chart
