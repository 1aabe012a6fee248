"""StatusBook: loads over a window, also when a seat's process is a new one."""

import numpy as np

from cluster.cli.status import lines
from cluster.watch.status import RankView, StatusBook
from experts.epoch.membership import Member
from experts.placement import Placement


def views(*loads: int) -> list[RankView]:
    return [RankView(Member(r, "expert"), "ready", np.array([[n]]), None) for r, n in enumerate(loads)]


def test_a_new_process_on_a_seat_starts_counting_anew() -> None:
    book = StatusBook("m", 1)
    book.look(views(1000, 1000))
    book.look(views(1100, 60))  # rank 1 was exchanged
    assert book.loads() == {0: 1.25, 1: 0.75}
    assert book.balancedness[0] == 0.8


def test_experts_on_one_rank_only_are_named() -> None:
    book = StatusBook("m", 3)
    told = book.status(views(1, 1), 1, Placement(0, 2, 3, np.array([[0, 1, 2, 0, 1, 3]])), "ready", "")
    assert [worker["sole_copies"] for worker in told["workers"]] == [1, 1]
    assert told["sole_experts"] == [{"layer": 0, "experts": [2, 3]}]
    assert "experts on one rank only: layer 0: 2, 3" in lines(told)
    told = book.status(views(1, 1), 1, Placement(0, 2, 2, np.array([[0, 1, 2, 3]])), "ready", "")
    assert [worker["sole_copies"] for worker in told["workers"]] == [2, 2]
    assert told["sole_experts"] == [], "there are no copies at all"
