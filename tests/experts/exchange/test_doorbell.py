"""The doorbell: a counter that no ring is lost from."""

import threading
import time

from experts.exchange.doorbell import Doorbell
from tests.patience import PATIENCE


def test_a_ring_before_the_wait_is_not_lost() -> None:
    bell = Doorbell()
    bell.ring((1, 3))
    assert bell.wait_for((1, 3), timeout=0)
    assert not bell.wait_for((1, 4), timeout=0)
    assert not bell.wait_for((2, 0), timeout=0), "steps count from 0 in each epoch"


def test_an_older_ring_changes_nothing() -> None:
    bell = Doorbell()
    bell.ring((1, 5))
    bell.ring((1, 2))
    assert bell.newest == (1, 5)
    bell.ring((2, 0))
    bell.ring((1, 9))
    assert bell.newest == (2, 0)


def test_waiters_wake_and_do_not_spin() -> None:
    bell = Doorbell()
    woken = threading.Event()

    def wait() -> None:
        assert bell.wait_for((0, 1))
        woken.set()

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.15, "waiting costs processor time"
    assert not woken.is_set()
    bell.ring((0, 1))
    for thread in threads:
        thread.join(PATIENCE)
    assert woken.is_set()
    assert not any(thread.is_alive() for thread in threads)
