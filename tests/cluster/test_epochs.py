"""Attempts to enter an epoch: what is said of one that failed, and how long the first one may take."""

import pickle

from cluster.control.epochs import ChangeFailed
from experts.epoch.machine import Build, Built, Drop, EpochMachine, Limits, Look, Propose, Void

ALL = frozenset({0, 1})
LIMITS = Limits(first=60.0, build=15.0, enter=10.0, drop=15.0)


def test_a_failed_change_crosses_processes_whole() -> None:
    failed = ChangeFailed(Void(3, "rank 1: no room", frozenset({1})))
    again = pickle.loads(pickle.dumps(failed))
    assert str(again) == str(failed) == "epoch 3 was not entered: rank 1: no room"
    assert again.silent == {1}


def test_the_first_epoch_may_take_longer_to_build_than_later_ones() -> None:
    """While a cluster starts, its processes take each other's cores."""
    machine = EpochMachine(LIMITS)
    assert machine.tick(0.0, [Propose(ALL, False, ALL)]) == [Build(1, ALL, False)]
    assert machine.tick(59.0, [Built(1, 0)]) == []
    assert machine.tick(59.5, [Built(1, 1)]) == [Look(1, ALL)]


def test_a_planned_attempt_that_is_late_asks_every_member() -> None:
    machine = EpochMachine(LIMITS)
    machine.members = ALL
    machine.tick(0.0, [Propose(ALL, True, ALL)])
    assert machine.tick(14.9, [Built(1, 0)]) == []
    assert machine.tick(15.0, []) == [Drop(1, ALL)]
    assert machine.tick(30.0, []) == [Void(1, "not built within 15 s by ranks 1", ALL)]
