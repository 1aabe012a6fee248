"""Mover: brings a cluster from one placement to another, in rounds beside the running steps, with limits on rate and memory.

Each round stages experts on the ranks that lack them, offers the placement reached to all, and waits until a step used
it. Whatever fails leaves the placement in use as it is.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from cluster.balance.planner import fetches
from cluster.balance.rounds import rounds
from cluster.state.roster import Seat
from experts.exchange.split import SplitPolicy
from experts.placement import Change, Placement
from experts.slots.migrate import Move, Staged
from experts.slots.weights_server import MoveFailed, PeerSlot
from experts.worker.deadlines import DEADLINES

T = TypeVar("T")
Note = Callable[[str, str], None]  # kind and text of an event


@dataclass(frozen=True, slots=True)
class MoveLimits:
    """expert_bytes: of one slot
    bandwidth: bytes/s of moves into a rank
    staged_bytes: of a rank, in one round
    stage_seconds: for fetching a round's experts, beside what their bytes take
    """

    expert_bytes: int
    bandwidth: float = 500e6
    staged_bytes: int = 64 << 20
    stage_seconds: float = 15.0

    @property
    def staged(self) -> int:
        """Experts that a rank may fetch for one round."""
        return max(1, self.staged_bytes // self.expert_bytes)


@dataclass(frozen=True, slots=True)
class InUse:
    """What may be in use.

    placements: by version, with the policy that each was offered with
    newest: ever offered
    """

    placements: dict[int, Placement]
    policies: dict[int, SplitPolicy]
    newest: int

    @classmethod
    def only(cls, placement: Placement, policy: SplitPolicy) -> "InUse":
        """One, of which all know that it is in use."""
        return cls({placement.version: placement}, {placement.version: policy}, placement.version)

    def policy_of(self, version: int) -> SplitPolicy:
        """The split's policy under a placement version."""
        return self.policies[version]


class Stuck(Exception):
    """A deadline passed; the text says which."""


class Mover:
    """One call of `carry_out` at a time.

    placement, policy: those in use
    fetched: experts so far
    know: gets each placement before it is offered
    """

    def __init__(
        self, seats: Sequence[Seat], placement: Placement, policy: SplitPolicy, limits: MoveLimits, note: Note,
        know: Callable[[Placement], None],
    ) -> None:  # fmt: skip
        self.placement, self.policy = placement, policy
        self.fetched = 0
        self.over = False  # nothing more is offered, and what others stage is left alone
        self._limits, self._note, self._know = limits, note, know
        self._newest = placement.version  # ever offered
        self._digests: dict[tuple[int, int], bytes] = {}  # checksums of (layer, expert)
        self._pending: tuple[Placement, SplitPolicy] | None = None  # offered, and not known to be in use
        self.meet(seats)

    def meet(self, seats: Sequence[Seat]) -> None:
        """The members of the epoch, from now on."""
        self._seats = seats
        self._holders = [seat for seat in seats if seat.member.holds_experts]

    @property
    def in_use(self) -> InUse:
        """The placement in use as far as is known, and the one that was offered after it."""
        known = [(self.placement, self.policy), *filter(None, [self._pending])]
        placements = {placement.version: placement for placement, _ in known}
        return InUse(placements, {placement.version: policy for placement, policy in known}, self._newest)

    def stop(self) -> None:
        """A rank was lost: nothing more is offered, and what is under way ends."""
        self.over = True

    def _check(self) -> None:
        if self.over:
            raise Stuck("a rank was lost")

    async def settle(self) -> None:
        """Find out whether a placement came into use after all. Raises Stuck while that is open."""
        self._check()
        if self._pending is None:
            return
        placement, policy = self._pending
        if min(await asyncio.gather(*(seat.port.version() for seat in self._seats))) < placement.version:
            raise Stuck(f"placement {placement.version} was offered and is not in use yet")
        self.placement, self.policy, self._pending = placement, policy, None

    async def carry_out(self, target: Placement, policy: SplitPolicy | None = None) -> None:
        """Go to `target`, or as near as the moves that succeed lead, and to a policy of the split. Raises Stuck."""
        try:
            if policy is not None and policy != self.policy:
                await self._switch(self._numbered(self.placement), policy)
            for wanted in rounds(self.placement, target, self._limits.staged):
                await self._round(wanted)
                if (self.placement.slot_expert != wanted.slot_expert).any():
                    break  # some move failed: the next plan starts from what is
        except Exception:
            await self._drop()
            raise

    async def _round(self, target: Placement) -> None:
        """Stage one round's moves, switch to what of it arrived."""
        self._check()
        limits, changes = self._limits, self.placement.diff(target)
        per_rank = {seat.rank: self._moves(seat, changes) for seat in self._holders}
        most = max(map(len, per_rank.values()), default=0)
        deadline = limits.stage_seconds + 5 * most * limits.expert_bytes / limits.bandwidth
        calls = [seat.port.stage(per_rank[seat.rank], limits.bandwidth) for seat in self._holders]
        staged_by = await _within(deadline, asyncio.gather(*calls), f"fetching {most} experts")
        each = [(seat, one) for seat, staged in zip(self._holders, staged_by, strict=True) for one in staged]
        failed = [(seat, one) for seat, one in each if one.error or not self._known_copy(one)]
        for seat, one in failed:
            self._note(
                "move failed",
                f"expert {one.move.expert} of layer {one.move.layer} to {seat.title}: "
                + (one.error or f"the copy from {one.origin} differs from those moved before"),
            )
        width = self.placement.slots_per_rank
        lost = {(one.move.layer, seat.rank * width + one.move.slot) for seat, one in failed}
        reached = self._numbered(without(self.placement, target, lost) if lost else target)
        fetched = int(fetches(self.placement, reached).sum())
        await self._switch(reached, self.policy)
        self.fetched += fetched
        await self._drop()

    def _numbered(self, placement: Placement) -> Placement:
        """With a version that was never offered."""
        self._newest += 1
        return replace(placement, version=self._newest)

    def _known_copy(self, staged: Staged) -> bool:
        """Whether a copy's checksum is that of the same expert's copies before it; the first one is believed."""
        return self._digests.setdefault((staged.move.layer, staged.move.expert), staged.digest) == staged.digest

    async def _switch(self, reached: Placement, policy: SplitPolicy) -> None:
        """Offer a placement to all ranks, and wait until a step used it. Raises Stuck."""
        self._check()
        self._know(reached)
        self._pending = reached, policy
        offers = asyncio.gather(*(seat.port.offer(reached, policy) for seat in self._seats))
        try:
            await _within(DEADLINES.switch, offers, f"offering placement {reached.version}")
        except MoveFailed as error:
            self._pending = None  # a rank that has not offered it keeps it from ever being used
            raise Stuck(str(error)) from error
        await _within(DEADLINES.switch, self._in_use(reached.version), f"switching to placement {reached.version}")
        self.placement, self.policy, self._pending = reached, policy, None

    async def _in_use(self, version: int) -> None:
        bell = next(seat.port for seat in self._seats if seat.member.runs_attention)
        while True:
            self._check()
            await bell.nudge()
            if min(await asyncio.gather(*(seat.port.version() for seat in self._seats))) >= version:
                return
            await asyncio.sleep(0.01)

    def _moves(self, seat: Seat, changes: Sequence[Change]) -> list[Move]:
        """What a rank fetches, each expert from its live copies: ranks of the same host first, turned so that sources
        share the work."""
        width = self.placement.slots_per_rank
        by_rank = {other.rank: other for other in self._holders}
        out = []
        for n, change in enumerate(changes):
            if change.slot // width != seat.rank or change.new < 0:
                continue
            slots = np.flatnonzero(self.placement.slot_expert[change.layer] == change.new).tolist()
            turned = slots[n % len(slots) :] + slots[: n % len(slots)]
            turned.sort(key=lambda slot: by_rank[slot // width].member.node_ip != seat.member.node_ip)
            peers = tuple(
                PeerSlot(by_rank[s // width].member.node_ip, by_rank[s // width].weights_port, s % width)
                for s in turned
            )
            out.append(Move(change.layer, change.slot % width, change.new, peers))
        return out

    async def _drop(self) -> None:
        """Forget what was staged, wherever a rank still answers."""
        if self.over:
            return
        await asyncio.gather(*(seat.port.drop_staged() for seat in self._holders), return_exceptions=True)


def without(current: Placement, target: Placement, failed: set[tuple[int, int]]) -> Placement:
    """`target` less some (layer, slot) changes, and less whatever would leave an expert without a copy then."""
    table = target.slot_expert.copy()
    for layer, slot in failed:
        table[layer, slot] = current.slot_expert[layer, slot]
    for layer, row in enumerate(table):
        while True:
            held = np.bincount(row[row >= 0], minlength=current.experts)
            missing = np.flatnonzero(held == 0)
            if not len(missing):
                break
            gone = current.slot_expert[layer] == missing[0]
            row[gone] = missing[0]
    return replace(target, slot_expert=table)


async def _within(seconds: float, work: Awaitable[T], what: str) -> T:
    try:
        return await asyncio.wait_for(work, seconds)
    except TimeoutError:
        raise Stuck(f"{what} took more than {seconds:.0f} s") from None
