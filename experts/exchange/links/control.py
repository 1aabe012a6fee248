"""LinkControl: a header's row is the bell, too: a rank that opens a step wakes those that sleep at their links."""

import time

from experts.exchange.control import Ring
from experts.exchange.doorbell import Doorbell, Moment
from experts.exchange.group_control import GroupControl
from experts.exchange.links.group import LinkGroup


class LinkControl(GroupControl):
    """The rank that wants a step opens it; its row is in the links of all others, and theirs are the answer."""

    _group: LinkGroup

    def __init__(self, bell: Doorbell, ring: Ring | None = None) -> None:
        """ring: nobody but this rank need be rung here."""
        super().__init__(bell)
        bell.on_ring = lambda: None

    def enter(self, group: LinkGroup) -> None:  # type: ignore[override]
        super().enter(group)
        self._bell.on_ring = group.circle.wake

    def wait_for(self, wanted: Moment, timeout: float | None = None) -> bool:
        until = None if timeout is None else time.monotonic_ns() + round(timeout * 1e9)
        while self._bell.newest < wanted:
            if self._group.circle.idle(until):
                return True
            if until is not None and time.monotonic_ns() >= until:
                return self._bell.newest >= wanted
        return True
