"""ClusterShape: the ranks that a plan is for. Pure data."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from experts.errors import UserError

MAX_RANKS = 1024  # of the C planner
MAX_CELLS = 1 << 30  # layers x slots, or x experts: what a machine can hold several times over


@dataclass(frozen=True, slots=True)
class ClusterShape:
    """Expert ranks and their slots per layer.

    ranks_per_node: 0 = all on one
    dead: ranks that hold nothing
    speeds: relative, empty = all alike
    absent: slots of the table that a rank does not have, as numbers over all ranks
    spread: copies of an expert go to different nodes first
    nodes: of each rank, where they are not alike
    min_copies: that every expert keeps, on as many ranks, where slots allow
    """

    ranks: int
    slots_per_rank: int
    ranks_per_node: int = 0
    dead: frozenset[int] = frozenset()
    speeds: tuple[float, ...] = ()
    absent: frozenset[int] = frozenset()
    spread: bool = False
    nodes: tuple[int, ...] = ()
    min_copies: int = 1

    @property
    def slots(self) -> int:
        """Of the whole table."""
        return self.ranks * self.slots_per_rank

    @property
    def live_slots(self) -> int:
        """Slots that can hold an expert."""
        gone = {slot for r in self.dead for slot in range(r * self.slots_per_rank, (r + 1) * self.slots_per_rank)}
        return self.slots - len(gone | self.absent)

    def copies_kept(self, experts: int) -> int:
        """Of min_copies, those that there are slots and live ranks for."""
        return max(1, min(self.min_copies, self.live_slots // experts, self.ranks - len(self.dead)))

    @property
    def pace(self) -> npt.NDArray[np.float64]:
        """[R] time per token; 0 for a dead rank."""
        pace = 1.0 / np.array(self.speeds or (1.0,) * self.ranks)
        pace[list(self.dead)] = 0.0
        return pace

    @property
    def node(self) -> npt.NDArray[np.int32] | None:
        """[R] node of each rank, None where all share one."""
        if self.nodes:
            return np.array(self.nodes, dtype=np.int32) if len(set(self.nodes)) > 1 else None
        if not 0 < self.ranks_per_node < self.ranks:
            return None
        return (np.arange(self.ranks) // self.ranks_per_node).astype(np.int32)

    def check(self, layers: int, experts: int) -> None:
        """Raise UserError unless this shape can hold a model of so many layers and experts."""
        if not 1 <= self.ranks <= MAX_RANKS:
            raise UserError(str(self.ranks), f"1 to {MAX_RANKS} ranks", "--ranks")
        if self.slots_per_rank < 1:
            raise UserError(str(self.slots_per_rank), "at least 1", "--slots-per-rank")
        if max(self.slots, experts) * layers > MAX_CELLS:
            raise UserError(f"{layers} layers x {self.slots} slots", f"at most {MAX_CELLS} in all", "--slots-per-rank")
        strange = sorted(r for r in self.dead if not 0 <= r < self.ranks)
        if strange:
            raise UserError(f"rank {strange[0]}", f"ranks 0 to {self.ranks - 1}", "--dead-ranks")
        if self.ranks_per_node < 0:
            raise UserError(str(self.ranks_per_node), "0 (no nodes) or more", "--ranks-per-node")
        if self.speeds and (len(self.speeds) != self.ranks or not all(0 < s < float("inf") for s in self.speeds)):
            raise UserError(",".join(f"{s:g}" for s in self.speeds), f"{self.ranks} numbers above 0", "--speeds")
        if self.min_copies < 1:
            raise UserError(str(self.min_copies), "at least 1", "--min-copies")
        if self.live_slots < experts:
            alive = f" on {self.ranks - len(self.dead)} live ranks" if self.dead else ""
            raise UserError(f"{self.live_slots} slots{alive}", f"at least {experts} (one per expert)", "slots")
