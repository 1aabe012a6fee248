"""StatusBook: loads over a window, also when a seat's process is a new one."""

import numpy as np

from cluster.watch.status import RankView, StatusBook
from experts.epoch.membership import Member


def views(*loads: int) -> list[RankView]:
    return [RankView(Member(r, "expert"), "ready", np.array([[n]]), None) for r, n in enumerate(loads)]


def test_a_new_process_on_a_seat_starts_counting_anew() -> None:
    book = StatusBook("m", 1)
    book.look(views(1000, 1000))
    book.look(views(1100, 60))  # rank 1 was exchanged
    assert book.loads() == {0: 1.25, 1: 0.75}
    assert book.balancedness[0] == 0.8
