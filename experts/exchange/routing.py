"""Routing: from the top-k ids of tokens to the rows that go to each rank. numpy on the CPU, no transport.

Members are named by their place in the group. Shape letters: T tokens, K top-k, R ranks, S slots per rank.
"""

from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from experts.epoch.membership import Membership
from experts.exchange.split import SplitPolicy, SplitTable, split, to_home
from experts.placement import IntArray, Placement


@dataclass(frozen=True, slots=True)
class Routing:
    """Where one source's tokens go.

    members: those with experts, by their numbers in the group, in order
    rows: of each of them, int64 rising token numbers, each at most once
    ranks: of each of them, its rank
    """

    members: list[int]
    rows: dict[int, IntArray]
    ranks: dict[int, int]
    slots: npt.NDArray[np.int32]  # [T, K] slot over all ranks, -1 = none
    slots_per_rank: int

    def local_slots(self, member: int) -> npt.NDArray[np.int32]:
        """[rows, K] int32 of a member's own slots, -1 where a pair goes elsewhere."""
        own = self.slots[self.rows[member]] - np.int32(self.ranks[member] * self.slots_per_rank)
        own[(own < 0) | (own >= self.slots_per_rank)] = -1
        return own


class Tables:
    """One placement version, ready to route for one membership."""

    def __init__(
        self,
        placement: Placement,
        membership: Membership,
        policy: SplitPolicy,
        before: "Tables | None" = None,
    ) -> None:
        """before: of another version for the same membership; layers that did not change are shared."""
        self.policy = policy
        self._placement = placement
        copies = placement.copies()
        self._split: list[SplitTable] = [
            before._split[layer]
            if before is not None and before.policy == policy and (before._placement.slot_expert[layer] == row).all()
            else SplitTable.of(placement, layer, policy, copies[layer])
            for layer, row in enumerate(placement.slot_expert)
        ]
        self._slots_per_rank = placement.slots_per_rank
        self._sit(membership)

    def _sit(self, membership: Membership) -> None:
        """Who holds which seat. Seats that hold an expert must have a member."""
        self._ranks = {i: m.rank for i, m in enumerate(membership.members) if m.holds_experts}
        self._members = list(self._ranks)
        assert self._placement.ranks_used <= set(self._ranks.values()), (self._placement.ranks_used, self._ranks)

    def seated(self, membership: Membership) -> "Tables":
        """The same placement for another membership; split tables are shared."""
        other = copy(self)
        other._sit(membership)
        return other

    def route_one(self, layer: int, ids: torch.Tensor, source: int, whole: bool = False) -> Routing:
        """Route a source's own tokens without knowing the others'.

        ids: [T, K] int16 or int32 on the CPU
        whole: every expert goes to its home copy, so that sources which can't see each other read no copy twice
        """
        table = self._split[layer]
        return self.routed(to_home(table, ids.numpy()) if whole else split(table, ids.numpy(), turn=source))

    def route_all(self, layer: int, ids: dict[int, torch.Tensor], mine: int) -> tuple[Routing, dict[int, int]]:
        """Route member `mine`'s tokens by one split of everyone's; and the rows it gets from each member.

        ids: per member in rising order, [T, K] int16 on the CPU.
        """
        together = np.concatenate([part.numpy() for part in ids.values()])
        slots = split(self._split[layer], together)
        counts = dict.fromkeys(ids, 0)
        own = self._ranks.get(mine)
        begin, routing = 0, None
        for member, part in ids.items():
            theirs = slots[begin : begin + part.shape[0]]
            begin += part.shape[0]
            if own is not None:
                counts[member] = int(((theirs // self._slots_per_rank) == own).any(axis=1).sum())
            if member == mine:
                routing = self.routed(theirs)
        assert routing is not None, (mine, list(ids))
        return routing, counts

    def replicates(self, layer: int) -> bool:
        """Whether an expert of a layer has several copies, so that there is something to split."""
        return len(self._split[layer].waterfill.expert) > 0

    @cached_property
    def kernel_tables(self) -> list[int]:
        """Where the C forms of the layers' split tables lie, as long as these tables live; empty without kernels."""
        return [table.kernel.address for table in self._split if table.kernel is not None]

    def routed(self, slots: npt.NDArray[np.int32]) -> Routing:
        """Of tokens whose split was made. slots: [T, K] over all ranks, -1 = none."""
        rank = slots // self._slots_per_rank  # -1 stays -1
        rows = {j: np.flatnonzero((rank == self._ranks[j]).any(axis=1)) for j in self._members}
        return Routing(self._members, rows, self._ranks, slots, self._slots_per_rank)
