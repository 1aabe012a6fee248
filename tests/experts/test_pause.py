"""Where a step thread waits between two epochs."""

import threading
import time

from experts.errors import RankLost
from experts.worker.pause import Pause
from tests.patience import PATIENCE


def test_who_asks_for_a_thread_that_has_ended_is_answered_at_once() -> None:
    pause = Pause(lambda reason: None)
    pause.end()
    started = time.monotonic()
    assert not pause.held(10 * PATIENCE)
    assert time.monotonic() - started < PATIENCE
    assert not pause.hold(RankLost(1, 2, "nothing follows"))


def test_a_thread_goes_on_when_it_is_released() -> None:
    broke, went_on = [], []
    pause = Pause(broke.append)
    thread = threading.Thread(target=lambda: went_on.append(pause.hold(RankLost(1, 2, "a peer died"))))
    thread.start()
    assert pause.held(PATIENCE)
    assert not went_on
    pause.release()
    thread.join(PATIENCE)
    assert ([lost.detail for lost in broke], went_on) == (["a peer died"], [True])
