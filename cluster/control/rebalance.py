"""Balancer: watches the loads, asks the policy, has experts moved, and says why and what it brought.

One at a time, beside the running steps; whatever fails leaves the placement in use as it is.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from cluster.balance.cost import CostModel
from cluster.balance.loads import History, LoadCollector, StepRow
from cluster.balance.planner import repaired
from cluster.balance.policies.base import Policy, PolicyFailed, Situation
from cluster.balance.shape import ClusterShape
from cluster.balance.speeds import RankSpeeds
from cluster.control.decision import Decision, brought, decided
from cluster.control.mover import InUse, MoveLimits, Mover, Stuck
from cluster.state.events import EventLog
from cluster.state.roster import Seat
from cluster.watch.recorder import Recording
from cluster.watch.status import BalancerView
from experts.errors import UserError
from experts.exchange.split import SplitPolicy
from experts.placement import ABSENT, IntArray, Placement
from experts.worker.remote import Gone

log = logging.getLogger(__name__)
_POLL = 0.5  # s between looks at the loads, at least
_TRIES = 3  # plans for one order to rebalance, when the ranks change while it is planned
_HISTORY = 240  # rows
_COUNTED = 20_000  # steps
_LEAST_ROWS = 4


@dataclass(frozen=True, slots=True)
class BalancerSettings:
    """enabled: acts by itself
    least_pairs: routed tokens a layer that make a row
    interval: rows between plans
    off: why it does not act by itself
    min_copies: ranks, or nodes, that hold each expert where slots allow
    """

    enabled: bool
    moves: MoveLimits
    least_pairs: int
    interval: int = 20
    horizon: float = 200.0
    off: str = ""
    min_copies: int = 1


class Counted(NamedTuple):
    """A step.

    busiest, mean: tokens of the ranks with most, and of the mean rank, over all layers
    """

    epoch: int
    step: int
    busiest: int
    mean: float


class Balancer:
    """`run` is a task of the supervisor's; `rebalance` may be called beside it."""

    def __init__(
        self, seats: Sequence[Seat], placement: Placement, policy: Policy, settings: BalancerSettings,
        events: EventLog, split: SplitPolicy | None = None, recording: Recording | None = None,
    ) -> None:  # fmt: skip
        """seats: all members of epoch 1, in its order
        split: the policy they began with
        recording: gets every step, too
        """
        self.plans = self.rebalances = 0
        self.losses = 0  # after which the others were in another epoch
        self.rebalance_seconds = 0.0
        self.state, self.reason = ("ok", "") if settings.enabled else ("off", settings.off)
        self.last_text = ""
        self._policy, self._settings, self._events = policy, settings, events
        self._mover = Mover(seats, placement, split or SplitPolicy(), settings.moves, self._note, self._know)
        self._speeds = RankSpeeds()
        self._holders = [seat for seat in seats if seat.member.holds_experts]
        self._collector = self._new_collector(1, seats)
        self._history = History(_HISTORY, settings.least_pairs)
        self.quiet = asyncio.Lock()  # held while something moves: its holder keeps the placement as it is
        self._asking = asyncio.Lock()  # held while the policy thinks; `quiet` is free meanwhile
        self._planned_at = 0  # rows seen when it planned last
        self._judge_at: tuple[int, Decision, Placement] | None = None  # rows, what was promised, what was before
        self._recording = recording
        self.counted: deque[Counted] = deque(maxlen=_COUNTED)

    @property
    def placement(self) -> Placement:
        """The one in use."""
        return self._mover.placement

    @property
    def split(self) -> SplitPolicy:
        """The split's policy in use."""
        return self._mover.policy

    @property
    def experts_moved(self) -> int:
        """Since the start."""
        return self._mover.fetched

    @property
    def view(self) -> BalancerView:
        """For status and metrics."""
        return BalancerView(
            self.state, self.reason, self._policy.name, self.plans, self.last_text, self.rebalances, self.experts_moved,
            self.rebalance_seconds, self.losses,
        )  # fmt: skip

    @property
    def shape(self) -> ClusterShape:
        """The expert ranks; seats without a member count as dead."""
        members = {seat.rank for seat in self._holders}
        vacant = frozenset(range(self.placement.ranks)) - members
        speeds = self._speeds.of(self.placement.ranks)
        hosts = {seat.rank: seat.member.node_ip for seat in self._holders}
        names = [hosts.get(rank, "") for rank in range(self.placement.ranks)]
        nodes = tuple(sorted(set(names)).index(name) for name in names) if len(set(hosts.values())) > 1 else ()
        return ClusterShape(
            self.placement.ranks, self.placement.slots_per_rank, dead=vacant, speeds=speeds, nodes=nodes,
            absent=frozenset(np.flatnonzero(self.placement.slot_expert[0] == ABSENT).tolist()),
            spread=self._settings.min_copies > 1, min_copies=self._settings.min_copies,
        )  # fmt: skip

    async def run(self) -> None:
        """Look at the loads when a rank has counted some, for ever, and rebalance when it is time."""
        try:
            while True:
                try:
                    if not self._due():
                        await self._news()
                    await self.look()
                    if self._due():
                        await self._consider()
                except Stuck as stuck:
                    self._degrade(str(stuck))
                except Gone as gone:  # a rank is lost, which its watch knows, too
                    log.info("loads can't be read: %s", gone)
                except Exception as error:  # a rank died, or a bug: the cluster goes on with the placement it has
                    self._degrade(f"{type(error).__name__}: {error}")
                await asyncio.sleep(_POLL)
        finally:
            self._policy.close()

    async def look(self) -> None:
        """Take in what the ranks counted since the last look."""
        await self._look(self._holders, [self._collector])
        self._judge()

    async def meet(self, epoch: int, seats: Sequence[Seat]) -> None:
        """Epoch `epoch` runs, of these members; call it with `quiet` held, before the processes of those that left end."""
        experts = [seat for seat in seats if seat.member.holds_experts]
        last, self._collector = self._collector, self._new_collector(epoch, seats)
        members = {seat.rank for seat in experts}
        leaving = [seat for seat in self._holders if seat.rank not in members]
        try:
            await self._look(leaving, [last])
        except Exception as error:  # who left may be gone already
            log.warning("the last loads of a rank that left are not counted: %s", error)
        try:
            await self._look(experts, [last, self._collector])
        except Gone as gone:  # the next loss, which its watch knows, too
            log.info("loads can't be read: %s", gone)
        for rank in members - {seat.rank for seat in self._holders}:
            self._speeds.forget(rank)
        self._holders = experts
        self._mover.meet(seats)
        self._judge_at = None  # what was promised was for other ranks

    @property
    def in_use(self) -> InUse:
        """What ranks may use."""
        return self._mover.in_use

    def lost(self) -> None:
        """A rank was lost: no placement is offered from now on, until the others are in another epoch."""
        self._mover.stop()

    async def recovered(self, epoch: int, seats: Sequence[Seat], placement: Placement, policy: SplitPolicy) -> None:
        """Epoch `epoch` runs after a loss, of these members, under a placement that no mover offered, and whose version is
        the newest one. What moved when the loss came is forgotten."""
        fetched = self._mover.fetched
        self._mover = Mover(seats, placement, policy, self._settings.moves, self._note, self._know)
        self._mover.fetched = fetched
        self.state, self.reason = ("ok", "") if self._settings.enabled else ("off", self._settings.off)
        self.losses += 1
        self._holders = [seat for seat in self._holders if seat in seats]
        await self.meet(epoch, seats)

    async def restore(self, rank: int, held: IntArray) -> None:
        """Give a rank that joined what its seat held before, `held` [L, S], where its slots are empty; with `quiet` held."""
        was = self.placement
        table = was.slot_expert.copy()
        own = table[:, rank * was.slots_per_rank : (rank + 1) * was.slots_per_rank]
        empty = (own < 0) & (held >= 0)
        own[empty] = held[empty]
        await self._mover.carry_out(Placement(was.version + 1, was.ranks, was.slots_per_rank, table, "restore"))

    async def vacate(self, rank: int) -> None:
        """Have the others take over what only `rank` holds, so that nothing routes to it; call it with `quiet` held.

        Raises UserError when the others have too few slots, Stuck when moves failed.
        """
        mover, was, before = self._mover, self.placement, self.experts_moved
        shape = replace(self.shape, dead=self.shape.dead | {rank})
        shape.check(was.layers, was.experts)
        load = np.ones((was.layers, was.experts))
        if len(self._history):
            load += np.stack([row.loads for row in self._history.newest(self._settings.interval)]).mean(axis=0)
        table = repaired(load, shape, was).astype(np.int64)
        await mover.settle()
        await mover.carry_out(Placement(was.version + 1, was.ranks, was.slots_per_rank, table, "vacate"))
        if (self.placement.local(rank) >= 0).any():
            raise Stuck(f"rank {rank} still holds experts: moves failed")
        self._note("vacated", f"rank {rank}; {self.experts_moved - before} experts were fetched by others")

    async def rebalance(self, dry_run: bool) -> Decision:
        """Plan now, and move unless `dry_run`. Raises UserError when there is nothing to plan from."""
        await self.look()
        if len(self._history) == 0:
            raise UserError("no loads yet", "some requests first", "rebalance")
        for _ in range(_TRIES):
            decision, asked = await self._decide()
            if dry_run:
                return decision
            async with self.quiet:
                if await self._still(asked):
                    if decision.moves:
                        await self._carry_out(decision)
                    return decision
        raise UserError("ranks that came, left or moved experts meanwhile", "a quiet moment", "rebalance")

    async def _news(self) -> None:
        """Until a step was counted that nobody looked at: the ranks say so, and idle ones are not asked. All ranks take
        part in every step, so one of them is enough."""
        first = self._holders[0]
        try:
            await first.port.stepped()
        except Exception:
            if first in self._holders:  # else it left, and was ended
                raise

    def _due(self) -> bool:
        return (
            self._settings.enabled
            and len(self._history) >= _LEAST_ROWS
            and self._history.total - self._planned_at >= self._settings.interval
        )

    async def _consider(self) -> None:
        try:
            decision, asked = await self._decide()
        except PolicyFailed as error:
            self._degrade(str(error))
            return
        async with self.quiet:
            if not await self._still(asked):
                self._planned_at = self._history.total - self._settings.interval  # due again, for what is now
            elif decision.moves:
                await self._carry_out(decision)
            elif self._wanted_split != self.split:
                await self._mover.carry_out(self.placement, self._wanted_split)
            elif self.state == "stuck":
                self.state, self.reason = "ok", ""

    async def _decide(self) -> tuple[Decision, Situation]:
        """What the policy wants, and what it was asked about: ranks may come and go while it thinks. Raises PolicyFailed."""
        async with self._asking:
            async with self.quiet:
                await self._mover.settle()
                situation = self._situation()
            decision = await asyncio.to_thread(decided, self._policy, situation)
        self.last_text = decision.text
        return decision, situation

    async def _still(self, asked: Situation) -> bool:
        """Whether a plan made for a situation can be carried out; with `quiet` held. Raises Stuck."""
        await self._mover.settle()
        return asked.current.version == self.placement.version and asked.shape == self.shape

    def _situation(self) -> Situation:
        """What is, for the policy."""
        if self._history.total - self._planned_at >= self._settings.interval:
            self._judge_speeds()
        self._planned_at = self._history.total
        self.plans += 1
        newest = self._history.newest(self._settings.interval)
        busy, steps = sum(float(row.seconds.max()) for row in newest), sum(row.steps for row in newest)
        cost = CostModel(
            max(busy / max(steps, 1), 1e-6),
            self._settings.moves.expert_bytes,
            self._settings.moves.bandwidth,
            self._settings.horizon,
        )
        return Situation(self._history.loads(), self.placement, self.shape, cost, self._settings.interval)

    async def _carry_out(self, decision: Decision) -> None:
        started = time.monotonic()
        was = self.placement
        self._note("rebalance", decision.text)
        before = self.experts_moved
        try:
            await self._mover.carry_out(decision.placement, self._wanted_split)
        except Stuck as stuck:
            self._degrade(str(stuck))
        else:
            self.state, self.reason = ("ok", "") if self._settings.enabled else ("off", self._settings.off)
        seconds, moved = time.monotonic() - started, self.experts_moved - before
        self.rebalances += moved > 0
        self.rebalance_seconds += seconds
        self._note(
            "moved",
            f"{moved} of {decision.moves} experts, {moved * self._settings.moves.expert_bytes / 1e6:.1f} MB, in {seconds:.2f} s; "
            f"placement {self.placement.version} is in use",
        )
        self._judge_at = (self._history.total + self._settings.interval, decision, was)

    async def _look(self, seats: Sequence[Seat], collectors: Sequence[LoadCollector]) -> None:
        counted = await asyncio.gather(*(seat.port.steps() for seat in seats))
        for collector in collectors:
            for seat, steps in zip(seats, counted, strict=True):
                collector.add(seat.rank, steps)
            for row in collector.take():
                self._take(row)

    def _take(self, row: StepRow) -> None:
        if self._recording is not None:
            self._recording.add(row)
        self._history.add(row)
        busiest, mean = row.rank_tokens.max(axis=0).sum(), row.rank_tokens.mean(axis=0).sum()
        self.counted.append(Counted(row.epoch, row.step, int(busiest), float(mean)))

    def _judge_speeds(self) -> None:
        """Whether some rank computes slower or faster than the others."""
        rows = [row for row in self._history.newest(self._settings.interval) if row.epoch == self._collector.epoch]
        if len(rows) < _LEAST_ROWS:
            return
        before = self._speeds.of(self.placement.ranks)
        work, seconds = np.stack([row.work for row in rows]), np.stack([row.seconds for row in rows])
        steps = np.array([float(row.steps) for row in rows])
        self._speeds.judge([seat.rank for seat in self._holders], work, seconds, steps)
        now = self._speeds.of(self.placement.ranks)
        if now != before:
            text = ", ".join(f"rank {rank} {speed:g}" for rank, speed in enumerate(now) if speed != 1)
            self._note("speeds", f"relative to the median rank: {text or 'all alike again'}")

    @property
    def _wanted_split(self) -> SplitPolicy:
        return replace(self._mover.policy, speeds=self._speeds.of(self.placement.ranks))

    def _new_collector(self, epoch: int, seats: Sequence[Seat]) -> LoadCollector:
        sources = [number for number, seat in enumerate(seats) if seat.member.runs_attention]
        ranks = [seat.rank for seat in seats if seat.member.holds_experts]
        return LoadCollector(epoch, self.placement, ranks, sources, self._mover.policy.floor)

    def _know(self, placement: Placement) -> None:
        self._collector.know(placement)

    def _judge(self) -> None:
        """Some time after a rebalance: what it brought, on the traffic that came."""
        if self._judge_at is None or self._history.total < self._judge_at[0]:
            return
        _, decision, was = self._judge_at
        self._judge_at = None
        since = self._history.newest(self._settings.interval)
        self._note("brought", brought(decision, was, self.placement, since, self.shape))

    def _degrade(self, reason: str) -> None:
        """Balancing does not go on as it should: said once, and shown until it does."""
        if reason != self.reason:
            log.warning("balancer: %s", reason)
            self._note("balancer", reason)
        self.state, self.reason = "stuck", reason

    def _note(self, kind: str, text: str) -> None:
        self._events.add(time.time(), kind, text)
