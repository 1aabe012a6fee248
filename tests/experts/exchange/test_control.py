"""Control: an epoch that is over wakes who sleeps and refuses who comes; the next one is not touched by it."""

import threading

import pytest

from experts.epoch.agreement import Row
from experts.epoch.membership import Member, Membership
from experts.errors import RankLost
from experts.exchange.base import ExchangeCounters
from experts.exchange.control import OwnControl
from experts.exchange.doorbell import Doorbell
from experts.exchange.group import build_group, connect_store, open_store
from experts.exchange.group_control import GroupControl
from experts.exchange.guard import GuardedGroup
from tests.patience import PATIENCE


def alone(epoch: int) -> GuardedGroup:
    """The real group of an epoch with one member."""
    store = open_store("127.0.0.1")
    try:
        client = connect_store("127.0.0.1", store.port, PATIENCE)
        group = build_group(client, epoch, 0, 1, "cpu", "127.0.0.1", PATIENCE, PATIENCE)
        return GuardedGroup(group, Membership(epoch, (Member(0, "both"),)), ExchangeCounters())
    finally:
        store.close()


def test_abort_wakes_who_sleeps_and_refuses_rows_until_the_next_epoch() -> None:
    control = GroupControl(Doorbell())
    control.enter(alone(3))
    row = Row(3, 0, 0, 0, 0, 0, 3)
    assert control.gather(row) == [row]
    woken = threading.Event()
    sleeper = threading.Thread(target=lambda: control.wait_for((3, 1), PATIENCE) and woken.set(), daemon=True)
    sleeper.start()
    control.abort()
    assert woken.wait(PATIENCE)
    with pytest.raises(RankLost, match="closed"):
        control.gather(row)
    control.enter(alone(4))
    assert not control.wait_for((4, 0), timeout=0), "the last epoch's end rings for none of the next one's steps"
    assert control.gather(row) == [row]


def test_the_bell_is_rung_for_the_others_too() -> None:
    bell, asked = Doorbell(), []
    control = GroupControl(bell, asked.append)
    control.ring((1, 2))
    assert asked == [(1, 2)]
    assert not control.wait_for((1, 2), timeout=0), "who rings all rings this one, too"
    bell.ring((1, 2))
    assert control.wait_for((1, 2), timeout=0)


def test_the_only_rank_has_all_rows_until_it_aborts() -> None:
    control = OwnControl(Doorbell())
    row = Row(1, 0, 0, 0, 0, 0, 1)
    assert control.gather(row) == [row]
    control.abort()
    assert control.wait_for((1, 5), timeout=0)
    with pytest.raises(RankLost, match="closed"):
        control.gather(row)
