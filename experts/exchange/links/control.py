"""LinkControl: a header's row is the bell, too: a rank that opens a step wakes those that sleep at their links."""

import time

from experts.exchange.doorbell import Doorbell, Moment
from experts.exchange.epoch_group import EpochGroup
from experts.exchange.group_control import GroupControl
from experts.exchange.links.group import LinkGroup


class LinkControl(GroupControl):
    """The rank that wants a step opens it; its row is in the links of all others, and theirs are the answer."""

    _links: LinkGroup  # of the group, from the first `enter` on

    def __init__(self, bell: Doorbell) -> None:
        super().__init__(bell)

    def enter(self, group: EpochGroup) -> None:
        """group: one of links, or one beside links."""
        super().enter(group)
        links = group if isinstance(group, LinkGroup) else getattr(group, "links", None)
        assert isinstance(links, LinkGroup), f"{type(group).__name__} has no links"
        self._links = links
        self._bell.on_ring = links.circle.wake

    def wait_for(self, wanted: Moment, timeout: float | None = None) -> bool:
        until = None if timeout is None else time.monotonic_ns() + round(timeout * 1e9)
        while self._bell.newest < wanted:
            if self._links.circle.idle(until):
                return True
            if until is not None and time.monotonic_ns() >= until:
                return self._bell.newest >= wanted
        return True
