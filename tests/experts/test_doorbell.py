"""The doorbell: a counter that no ring is lost from."""

import threading
import time

from experts.doorbell import Doorbell


def test_a_ring_before_the_wait_is_not_lost() -> None:
    bell = Doorbell()
    bell.ring(3)
    assert bell.wait_above(2, timeout=0)
    assert not bell.wait_above(3, timeout=0)


def test_an_older_ring_changes_nothing() -> None:
    bell = Doorbell()
    bell.ring(5)
    bell.ring(2)
    assert bell.newest == 5


def test_waiters_wake_and_do_not_spin() -> None:
    bell = Doorbell()
    woken = threading.Event()

    def wait() -> None:
        assert bell.wait_above(0)
        woken.set()

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.15, "waiting costs processor time"
    assert not woken.is_set()
    bell.ring(1)
    for thread in threads:
        thread.join(5)
    assert woken.is_set()
    assert not any(thread.is_alive() for thread in threads)
