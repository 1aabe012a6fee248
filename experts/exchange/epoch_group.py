"""EpochGroup: the members of one epoch as one of them sees them, whatever they are connected by."""

from abc import ABC, abstractmethod

from experts.dump import StepMoment
from experts.epoch.agreement import Row
from experts.epoch.membership import Membership
from experts.errors import RankLost


class EpochGroup(ABC):
    """The step thread steps in it; `moment` and `close` are for any thread.

    index: this member's place among the `size`
    step: of the epoch, the one under way
    holders, sources: members with slots, and those that bring tokens
    """

    def __init__(self, membership: Membership, index: int) -> None:
        self.membership, self.index, self.size = membership, index, membership.size
        self.step = 0
        self.holders = [i for i, member in enumerate(membership.members) if member.holds_experts]
        self.sources = [i for i, member in enumerate(membership.members) if member.runs_attention]

    @property
    def epoch(self) -> int:
        """The epoch that this is the group of."""
        return self.membership.epoch

    def name(self, index: int) -> str:
        """A member, as an operator knows it."""
        member = self.membership.members[index]
        return f"rank {member.rank} ({member.role})"

    def lost(self, detail: str) -> RankLost:
        """What is raised when this group can't go on."""
        return RankLost(self.epoch, self.step, detail)

    @abstractmethod
    def gather(self, row: Row) -> list[Row]:
        """Everyone's row of a header, in the order of the members; blocks until all have brought theirs. Raises RankLost."""

    @abstractmethod
    def moment(self, layer: int) -> StepMoment:
        """What the step thread waits for in this group, while its layer is `layer`."""

    @abstractmethod
    def close(self) -> None:
        """Leave the epoch at once; what waits in it, here or on a peer, gets RankLost."""
