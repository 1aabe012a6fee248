"""ExpertRankLoop: the step loop of a rank that only holds experts. Knows no request, no sequence and no Ray."""

import logging
from collections.abc import Callable

from experts.doorbell import Doorbell, Moment
from experts.errors import RankLost
from experts.exchange.base import Exchange
from experts.exchange.wire import StepWish
from experts.layers import ExpertLayers

log = logging.getLogger(__name__)


class ExpertRankLoop:
    """Takes part in every step of its group; sleeps while the group is idle."""

    def __init__(
        self,
        layers: ExpertLayers,
        exchange: Exchange,
        doorbell: Doorbell,
        on_lost: Callable[[str], None],
        awaited: bool = False,
    ) -> None:
        """on_lost: told why, from the step thread, when the group broke; the exchange is closed by then.

        awaited: the others come to the first step by themselves, nobody will ring for it.
        """
        self._layers, self._exchange, self._doorbell, self._on_lost = layers, exchange, doorbell, on_lost
        self._next: Moment = (exchange.epoch, 0)
        self._busy = awaited

    def run(self) -> None:
        """The step thread's body: ends after a step whose header says stop, or when the group broke."""
        stop = False
        try:
            while not stop:
                self._sleep()
                stop = self._step()
        except RankLost as lost:
            self._exchange.close()
            self._on_lost(str(lost))
        except Exception as error:  # a bug or a device failure: peers must not wait for this rank
            log.exception("step %s failed", self._next)
            self._exchange.close()
            self._on_lost(f"a step failed: {type(error).__name__}: {error}")

    def _sleep(self) -> None:
        if not self._busy:
            self._doorbell.wait_for(self._next)

    def _step(self) -> bool:
        header = self._exchange.open_step(StepWish())
        self._next, self._busy = (header.epoch, header.step + 1), header.busy
        if header.busy:
            self._layers.run_empty()
            self._layers.end_step(header)
        return header.stop
