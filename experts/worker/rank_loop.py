"""ExpertRankLoop: the step loop of a rank that only holds experts. Knows no request, no sequence and no Ray."""

import logging

from experts.epoch.agreement import StepWish
from experts.errors import RankLost
from experts.exchange.base import Exchange
from experts.exchange.doorbell import Moment
from experts.layers import ExpertLayers
from experts.worker.pause import Pause

log = logging.getLogger(__name__)


class ExpertRankLoop:
    """Takes part in every step of its group; sleeps while the group is idle."""

    def __init__(
        self, layers: ExpertLayers, exchange: Exchange, awaited: bool = False, pause: Pause | None = None
    ) -> None:
        """awaited: the others come to the first step by themselves, nobody will ring for it
        pause: where it waits once its epoch broke, None: nothing follows
        """
        self.lost = ""  # why the loop ended, empty when it was asked to
        self._layers, self._exchange = layers, exchange
        self._pause = pause
        self._next: Moment = (exchange.epoch, 0)
        self._busy = awaited

    def run(self) -> None:
        """The step thread's body: ends after a step whose header says stop, or when the group broke and nothing follows;
        then it is closed."""
        try:
            while not self._until_it_breaks():
                pass
        except Exception as error:  # a bug or a device failure: peers must not wait for this rank
            log.exception("step %s failed", self._next)
            self._exchange.close()
            self.lost = f"a step failed: {type(error).__name__}: {error}"

    def _until_it_breaks(self) -> bool:
        """Steps of an epoch; whether they were the last ones."""
        stop = False
        try:
            while not stop:
                self._sleep()
                stop = self._step()
        except RankLost as lost:
            self._exchange.close()
            if self._pause is None or not self._pause.hold(lost):
                self.lost = str(lost)
                return True
            self._next, self._busy = (self._exchange.epoch, 0), True  # all come to the first step by themselves
        return stop

    def fail(self, reason: str) -> None:
        """Nothing waits for a rank's steps here."""

    def stop(self) -> None:
        """A rank that brings tokens asks the group to end."""

    def nudge(self) -> None:
        """A rank that brings tokens asks for steps."""

    def stats(self) -> None:
        """Nothing is counted beside loads."""

    def _sleep(self) -> None:
        if not self._busy:
            self._exchange.control.wait_for(self._next)

    def _step(self) -> bool:
        header = self._exchange.open_step(StepWish())
        self._next, self._busy = (header.epoch, header.step + 1), header.busy
        if header.busy:
            self._layers.run_empty()
            self._layers.end_step(header)
        return header.stop
