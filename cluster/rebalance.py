"""Balancer: watches the loads, asks the policy, moves experts in rounds, and says why and what it brought.

One at a time, beside the running steps; whatever fails leaves the placement in use as it is. Knows ranks through
`RankPort` only, so it runs alike over Ray actors and over threads.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from cluster.balance.cost import CostModel
from cluster.balance.forecast import forecast, rows_of
from cluster.balance.loads import History, LoadCollector, excess_of
from cluster.balance.planner import fetches
from cluster.balance.policies.base import Policy, Situation
from cluster.balance.policies.registry import PolicyFailed, ask
from cluster.balance.rounds import rounds
from cluster.balance.score import predicted_excess
from cluster.balance.shape import ClusterShape
from cluster.events import EventLog
from cluster.recorder import LoadRecorder
from cluster.status import BalancerView
from experts.errors import UserError
from experts.loads import StepLoads
from experts.migrate import Move, Staged
from experts.placement import Change, Placement
from experts.weights_server import MoveFailed, PeerSlot

log = logging.getLogger(__name__)
T = TypeVar("T")
_POLL = 0.5  # s between looks at the loads
_STAGE_SECONDS = 15.0  # for fetching a round's experts, beside what their bytes take
_SWITCH_SECONDS = 10.0  # for all ranks to end a step under a placement that all offered
_HISTORY = 240  # rows
_COUNTED = 20_000  # steps
_LEAST_ROWS = 4


class RankPort(Protocol):
    """A rank as the balancer uses it. Every call may raise when the rank is gone."""

    rank: int
    title: str
    holds: bool
    runs_attention: bool
    host: str
    weights_port: int

    async def steps(self) -> list[StepLoads]: ...
    async def stage(self, moves: Sequence[Move], bandwidth: float) -> list[Staged]: ...
    async def offer(self, placement: Placement) -> None: ...
    async def drop_staged(self) -> None: ...
    async def version(self) -> int: ...
    async def nudge(self) -> None: ...


@dataclass(frozen=True, slots=True)
class BalancerSettings:
    """enabled: acts by itself; interval: rows between plans; least_pairs: routed tokens a layer that make a row;
    expert_bytes: of one slot; bandwidth: bytes/s of moves into a rank; staged_bytes: of a rank, in one round."""

    enabled: bool
    expert_bytes: int
    least_pairs: int
    interval: int = 20
    bandwidth: float = 500e6
    staged_bytes: int = 64 << 20
    horizon: float = 200.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy wants. before, after: predicted excess; moves: experts that ranks fetch; cost: s of transfer."""

    placement: Placement
    before: float
    after: float
    moves: int
    cost: float

    @property
    def text(self) -> str:
        """A line."""
        if not self.moves:
            return f"no move pays at a predicted excess of {100 * self.before:.1f} %"
        return (
            f"{self.moves} experts to move, predicted excess {100 * self.before:.1f} % to {100 * self.after:.1f} %, "
            f"{1e3 * self.cost:.1f} ms of transfer"
        )


class Stuck(Exception):
    """A deadline of the balancer passed; the text says which."""


class Balancer:
    """`run` is a task of the supervisor's; `rebalance` may be called beside it."""

    def __init__(
        self, ports: Sequence[RankPort], placement: Placement, policy: Policy, settings: BalancerSettings,
        events: EventLog, recorder: LoadRecorder | None = None,
    ) -> None:  # fmt: skip
        """ports: all members of the epoch, in its order; recorder: gets every step, too."""
        self.placement = placement
        self.plans = self.rebalances = self.experts_moved = 0
        self.rebalance_seconds = 0.0
        self.state = "ok" if settings.enabled else "off"
        self.reason = ""
        self.last_text = ""
        self._ports, self._policy, self._settings, self._events = ports, policy, settings, events
        self._experts = [port for port in ports if port.holds]
        sources = [number for number, port in enumerate(ports) if port.runs_attention]
        self._collector = LoadCollector(placement, [port.rank for port in self._experts], sources)
        self._history = History(_HISTORY, settings.least_pairs)
        self._lock = asyncio.Lock()
        self._newest = placement.version  # ever offered
        self._digests: dict[tuple[int, int], bytes] = {}  # checksums of (layer, expert)
        self._pending: Placement | None = None  # offered, and not known to be in use
        self._planned_at = 0  # rows seen when it planned last
        self._judge_at: tuple[int, Decision, Placement] | None = None  # rows, what was promised, what was before
        self._recorder = recorder
        self.counted: deque[tuple[int, int, float]] = deque(maxlen=_COUNTED)  # step, busiest, mean tokens, over layers

    @property
    def view(self) -> BalancerView:
        """For status and metrics."""
        return BalancerView(
            self.state, self.reason, self._policy.name, self.plans, self.last_text, self.rebalances, self.experts_moved,
            self.rebalance_seconds,
        )  # fmt: skip

    @property
    def shape(self) -> ClusterShape:
        """The expert ranks."""
        return ClusterShape(self.placement.ranks, self.placement.slots_per_rank)

    async def run(self) -> None:
        """Look at the loads for ever, and rebalance when it is time."""
        while True:
            await asyncio.sleep(_POLL)
            try:
                await self.look()
                if self._settings.enabled and self._due():
                    async with self._lock:
                        await self._consider()
            except Stuck as stuck:
                self._degrade(str(stuck))
            except Exception as error:  # a rank died, or a bug: the cluster goes on with the placement it has
                self._degrade(f"{type(error).__name__}: {error}")

    async def look(self) -> None:
        """Take in what the ranks counted since the last look."""
        told = await asyncio.gather(*(port.steps() for port in self._experts))
        for port, steps in zip(self._experts, told, strict=True):
            self._collector.add(port.rank, steps)
        for row in self._collector.take():
            if self._recorder is not None:
                self._recorder.add(row)
            self._history.add(row)
            busiest, mean = row.rank_tokens.max(axis=0).sum(), row.rank_tokens.mean(axis=0).sum()
            self.counted.append((row.step, int(busiest), float(mean)))
        self._judge()

    async def rebalance(self, dry_run: bool) -> Decision:
        """Plan now, and move unless `dry_run`. Raises UserError when there is nothing to plan from."""
        async with self._lock:
            await self.look()
            if len(self._history) == 0:
                raise UserError("no loads yet", "some requests first", "rebalance")
            decision = await self._decide()
            if not dry_run and decision.moves:
                await self._carry_out(decision)
            return decision

    def _due(self) -> bool:
        return len(self._history) >= _LEAST_ROWS and self._history.total - self._planned_at >= self._settings.interval

    async def _consider(self) -> None:
        try:
            decision = await self._decide()
        except PolicyFailed as error:
            self._degrade(str(error))
            self._planned_at = self._history.total
            return
        if decision.moves:
            await self._carry_out(decision)
        elif self.state == "stuck":
            self.state, self.reason = "ok", ""

    async def _decide(self) -> Decision:
        """Ask the policy, beside the event loop."""
        await self._settle()
        self._planned_at = self._history.total
        self.plans += 1
        loads, steps = self._history.loads(), sum(row.steps for row in self._history.newest(self._settings.interval))
        busy = sum(float(row.seconds.max()) for row in self._history.newest(self._settings.interval))
        cost = CostModel(
            max(busy / max(steps, 1), 1e-6),
            self._settings.expert_bytes,
            self._settings.bandwidth,
            self._settings.horizon,
        )
        situation = Situation(loads, self.placement, self.shape, cost, self._settings.interval)

        def plan() -> Decision:
            wanted = ask(self._policy, situation)
            rows = forecast(loads, self._settings.interval)
            before = predicted_excess(rows, self.placement, self.shape)
            moves = int(fetches(self.placement, wanted).sum())
            after = predicted_excess(rows, wanted, self.shape) if moves else before
            return Decision(wanted, before, after, moves, moves * cost.move_seconds())

        decision = await asyncio.to_thread(plan)
        self.last_text = decision.text
        return decision

    async def _settle(self) -> None:
        """Find out whether a placement came into use after all. Raises Stuck while that is open."""
        if self._pending is None:
            return
        if min(await asyncio.gather(*(port.version() for port in self._ports))) < self._pending.version:
            raise Stuck(f"placement {self._pending.version} was offered and is not in use yet")
        self.placement, self._pending = self._pending, None

    async def _carry_out(self, decision: Decision) -> None:
        started = time.monotonic()
        was = self.placement
        self._note("rebalance", decision.text)
        limit = max(1, self._settings.staged_bytes // self._settings.expert_bytes)
        moved = 0
        try:
            for target in rounds(self.placement, decision.placement, limit):
                moved += await self._round(target)
                if (self.placement.slot_expert != target.slot_expert).any():
                    break  # some move failed: the next plan starts from what is
        except Stuck as stuck:
            await self._drop()
            self._degrade(str(stuck))
        except Exception:
            await self._drop()
            raise
        else:
            self.state, self.reason = "ok" if self._settings.enabled else "off", ""
        seconds = time.monotonic() - started
        self.rebalances += moved > 0
        self.experts_moved += moved
        self.rebalance_seconds += seconds
        self._note(
            "moved",
            f"{moved} of {decision.moves} experts, {moved * self._settings.expert_bytes / 1e6:.1f} MB, in {seconds:.2f} s; "
            f"placement {self.placement.version} is in use",
        )
        self._judge_at = (self._history.total + self._settings.interval, decision, was)

    async def _round(self, target: Placement) -> int:
        """Stage one round's moves, switch to what of it arrived. Returns the experts fetched."""
        changes = self.placement.diff(target)
        per_rank = {port.rank: self._moves(port, changes) for port in self._experts}
        most = max(map(len, per_rank.values()), default=0)
        deadline = _STAGE_SECONDS + 5 * most * self._settings.expert_bytes / self._settings.bandwidth
        calls = [port.stage(per_rank[port.rank], self._settings.bandwidth) for port in self._experts]
        told = await _within(deadline, asyncio.gather(*calls), f"fetching {most} experts")
        each = [(port, one) for port, staged in zip(self._experts, told, strict=True) for one in staged]
        failed = [(port, one) for port, one in each if one.error or not self._known_copy(one)]
        for port, one in failed:
            self._note(
                "move failed",
                f"expert {one.move.expert} of layer {one.move.layer} to {port.title}: "
                + (one.error or f"the copy from {one.origin} differs from those moved before"),
            )
        width = self.placement.slots_per_rank
        lost = {(one.move.layer, port.rank * width + one.move.slot) for port, one in failed}
        self._newest += 1
        reached = replace(without(self.placement, target, lost) if lost else target, version=self._newest)
        fetched = int(fetches(self.placement, reached).sum())
        await self._switch(reached)
        await self._drop()
        return fetched

    def _known_copy(self, staged: Staged) -> bool:
        """Whether a copy's checksum is that of the same expert's copies before it; the first one is believed."""
        return self._digests.setdefault((staged.move.layer, staged.move.expert), staged.digest) == staged.digest

    async def _switch(self, reached: Placement) -> None:
        """Offer a placement to all ranks, and wait until a step used it. Raises Stuck."""
        self._collector.know(reached)
        self._pending = reached
        offers = asyncio.gather(*(port.offer(reached) for port in self._ports))
        try:
            await _within(_SWITCH_SECONDS, offers, f"offering placement {reached.version}")
        except MoveFailed as error:
            self._pending = None  # a rank that has not offered it keeps it from ever being used
            raise Stuck(str(error)) from error
        await _within(_SWITCH_SECONDS, self._in_use(reached.version), f"switching to placement {reached.version}")
        self.placement, self._pending = reached, None

    async def _in_use(self, version: int) -> None:
        bell = next(port for port in self._ports if port.runs_attention)
        while True:
            await bell.nudge()
            if min(await asyncio.gather(*(port.version() for port in self._ports))) >= version:
                return
            await asyncio.sleep(0.01)

    def _moves(self, port: RankPort, changes: Sequence[Change]) -> list[Move]:
        """What a rank fetches, each expert from its live copies: ranks of the same host first, turned so that sources
        share the work."""
        width = self.placement.slots_per_rank
        by_rank = {p.rank: p for p in self._experts}
        out = []
        for n, change in enumerate(changes):
            if change.slot // width != port.rank or change.new < 0:
                continue
            slots = np.flatnonzero(self.placement.slot_expert[change.layer] == change.new).tolist()
            turned = slots[n % len(slots) :] + slots[: n % len(slots)]
            turned.sort(key=lambda slot: by_rank[slot // width].host != port.host)
            peers = tuple(
                PeerSlot(by_rank[s // width].host, by_rank[s // width].weights_port, s % width) for s in turned
            )
            out.append(Move(change.layer, change.slot % width, change.new, peers))
        return out

    def _judge(self) -> None:
        """Some time after a rebalance: what it brought, on the traffic that came."""
        if self._judge_at is None or self._history.total < self._judge_at[0]:
            return
        _, decision, was = self._judge_at
        self._judge_at = None
        since = self._history.newest(self._settings.interval)
        rows = rows_of(np.stack([row.loads for row in since]))
        old, new = (predicted_excess(rows, p, self.shape) for p in (was, self.placement))
        self._note(
            "brought",
            f"excess of the traffic since: {100 * new:.1f} % ({100 * decision.after:.1f} % was predicted), where the "
            f"placement before would have had {100 * old:.1f} %; counted, small steps included: {100 * excess_of(since):.1f} %",
        )

    async def _drop(self) -> None:
        """Forget what was staged, wherever a rank still answers."""
        await asyncio.gather(*(port.drop_staged() for port in self._experts), return_exceptions=True)

    def _degrade(self, reason: str) -> None:
        """Balancing does not go on as it should: told once, and shown until it does."""
        if reason != self.reason:
            log.warning("balancer: %s", reason)
            self._note("balancer", reason)
        self.state, self.reason = "stuck", reason

    def _note(self, kind: str, text: str) -> None:
        self._events.add(time.time(), kind, text)


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
