"""GroupControl: the ranks of an epoch speak over the group that their tokens use."""

from experts.epoch.agreement import Row
from experts.exchange.control import Control
from experts.exchange.epoch_group import EpochGroup


class GroupControl(Control):
    """Rows are gathered by the group, and closing it ends the epoch; the bell is rung by calls from rank to rank."""

    _group: EpochGroup  # from the first `enter` on

    def enter(self, group: EpochGroup) -> None:
        """Speak with the members of this epoch from now on. By the step thread, or while it waits."""
        self._group = group

    def gather(self, row: Row) -> list[Row]:
        return self._group.gather(row)

    def abort(self) -> None:
        group = self._group
        group.close()
        self._wake(group.epoch)
