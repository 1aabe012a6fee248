"""The cluster's state machine, event by event."""

from cluster.state.lifecycle import Lifecycle


def ready() -> Lifecycle:
    life = Lifecycle()
    life.joined(1)
    return life


def test_start() -> None:
    life = Lifecycle()
    assert (life.state, life.epoch) == ("starting", 0)
    life.joined(1)
    assert (life.state, life.reason, life.epoch) == ("ready", "", 1)


def test_news_of_an_old_epoch_changes_nothing() -> None:
    life = ready()
    life.joined(3)
    version = life.version
    assert not life.joined(2)
    assert (life.epoch, life.version) == (3, version)


def test_recovering_is_between_a_loss_and_the_next_epoch() -> None:
    life = ready()
    assert life.recovers("rank 1 died; phase 1")
    assert life.recovers("rank 1 died; phase 2")
    assert (life.state, life.reason) == ("recovering", "rank 1 died; phase 2")
    assert life.joined(2)
    assert (life.state, life.reason, life.epoch) == ("ready", "", 2)
    life.broke("for good")
    assert not life.recovers("rank 0 died")
    assert life.reason == "for good"


def test_death_degrades_and_names_the_cause() -> None:
    life = ready()
    version = life.version
    life.died("rank 1 (expert) died")
    assert (life.state, life.reason) == ("degraded", "rank 1 (expert) died")
    assert life.version > version
    life.joined(life.epoch)
    assert life.state == "degraded"


def test_a_broken_group_degrades_once() -> None:
    life = ready()
    life.broke("first")
    life.broke("second")
    assert life.reason == "first"


def test_stopping_is_final() -> None:
    life = ready()
    life.stop()
    life.died("gone")
    life.broke("x")
    assert life.state == "stopping"


def test_a_notice_is_told_and_changes_no_state() -> None:
    life = ready()
    version = life.version
    life.notice("the gRPC door died and is started again")
    assert (life.state, life.version) == ("ready", version + 1)
    assert "door" in life.reason
    life.notice("")
    assert (life.state, life.reason, life.version) == ("ready", "", version + 2)
    life.died("rank 0 died")
    life.notice("the gRPC door died and is started again")
    assert (life.state, life.reason) == ("degraded", "rank 0 died")
