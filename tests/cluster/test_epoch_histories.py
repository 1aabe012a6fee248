"""Random histories of a cell: ranks die, leave and join, experts move, calls are late. What must never be never is, and once
the faults stop all serve again. A failing seed is in the message, and fails again."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from cluster.config import ServeConfig
from cluster.control import recovery
from cluster.control.epochs import ChangeFailed
from cluster.control.mover import InUse, Mover, Stuck
from cluster.plan import ServePlan, make_plan
from experts.epoch.machine import Action, Attempt, EpochMachine, Limits, Propose
from experts.errors import UserError
from experts.placement import Placement
from experts.worker.remote import Gone
from experts.worker.worker import Standing
from tests import checkpoints
from tests.cluster.simulated_ranks import VirtualLoop, World

SEEDS, MANY = 8, 400
SECONDS = 12.0  # of faults, in virtual time


@pytest.fixture(scope="module")
def plans() -> list[ServePlan]:
    """1 + 3 with copies of everything, and with none."""
    folder = checkpoints.shared("hunyuan_v1_moe")
    return [
        make_plan(
            folder,
            ServeConfig(expert_workers=3, num_redundant_experts=spare, enable_eplb=False, dtype="float32"),
            check_ports=False, check_text=False,
        )
        for spare in (16, 0)
    ]  # fmt: skip


async def history(world: World) -> None:
    cell, rng = world.cell, world.rng
    loop = asyncio.get_running_loop()
    await cell.start()
    if world.seed % 3 == 0:  # deadlines that are missed by ranks that do well
        cell._epochs._machine._limits = Limits(60.0, rng.choice([0.3, 3.0]), rng.choice([0.05, 0.4]), 15.0)
    acting: set[asyncio.Task[None]] = set()
    while loop.time() < SECONDS:
        await asyncio.sleep(rng.choice([0.0, 0.05, 0.5, 2.0]))
        act = rng.choice([_kill, _kill, _release, _admit, _move])
        acting.add(asyncio.ensure_future(_tried(act, world)))
    cell._epochs._machine._limits = Limits(60.0, 15.0, 10.0, 15.0)
    while acting:
        _, acting = await asyncio.wait(acting, timeout=100)
    for _ in range(80):
        await asyncio.sleep(5.0)
        if cell.life.state == "ready" and not cell.roster.starting and _all_step(world):
            break
    else:
        world.wrong.append(f"no progress: {cell.life.state}, {cell.life.reason}, {world.events.entries()[-5:]}")
    before = {world.ranks[seat.rank]: world.ranks[seat.rank].at for seat in cell.roster.seats}
    await asyncio.sleep(2.0)
    for rank, at in before.items():
        world.check(rank.at > at, f"rank {rank.rank} has stopped at {at}")
    await cell.stop()


def _all_step(world: World) -> bool:
    ranks = [world.ranks[seat.rank] for seat in world.cell.roster.seats]
    return all(rank.epoch_number == world.cell.life.epoch and not rank.holding for rank in ranks)


async def _tried(act: Callable[[World], Any], world: World) -> None:
    with contextlib.suppress(UserError, ChangeFailed, Stuck, Gone, TimeoutError):
        await act(world)


async def _kill(world: World) -> None:
    world.kill(world.rng.choice([rank for rank, one in world.ranks.items() if one.seat.role == "expert"]))


async def _release(world: World) -> None:
    await world.cell.release(world.rng.randrange(3))


async def _admit(world: World) -> None:
    await world.cell.admit(world.rng.randrange(3))


async def _move(world: World) -> None:
    """The same copies in other slots of the same ranks."""
    balancer = world.cell._serving()
    async with balancer.quiet:
        was, order = balancer.placement, np.random.default_rng(world.rng.randrange(1 << 30))
        table = was.slot_expert.copy()
        for row in table:
            for rank in range(was.ranks):
                order.shuffle(row[rank * was.slots_per_rank : (rank + 1) * was.slots_per_rank])
        await balancer._mover.carry_out(Placement(was.version + 1, was.ranks, was.slots_per_rank, table))


def wrong_in(plan: ServePlan, seed: int) -> list[str]:
    """What went wrong in one history."""
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    world: list[World] = []

    async def main() -> None:
        world.append(World(plan, seed))
        async with asyncio.timeout(10_000):
            await history(world[0])

    try:
        loop.run_until_complete(main())
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        asyncio.set_event_loop(None)
        loop.close()
    return world[0].wrong


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads know no virtual time."""

    async def at_once(work: Callable[..., Any], *arguments: Any) -> Any:
        return work(*arguments)

    monkeypatch.setattr(asyncio, "to_thread", at_once)
    monkeypatch.setattr(recovery, "_TRIES", 1000)  # where deadlines are missed on purpose


def all_right(plans: list[ServePlan], seeds: range) -> None:
    for seed in seeds:
        wrong = wrong_in(plans[seed % 2], seed)
        assert not wrong, f"seed {seed}: {wrong[:3]}"


def test_histories(plans: list[ServePlan]) -> None:
    all_right(plans, range(SEEDS))


def _same_number(machine: EpochMachine, now: float, event: Propose) -> list[Action]:
    machine.number = max(machine.number - 1, 0)
    return _propose(machine, now, event)


def _no_word(machine: EpochMachine, now: float, attempt: Attempt, why: str) -> list[Action]:
    attempt.why = why
    return machine._void(attempt, broken=False)


def _oldest(standings: Sequence[Standing], in_use: InUse, made_from: dict[int, int]) -> tuple[Placement, int]:
    found, number = _base(standings, in_use, made_from)
    used = min(made_from.get(standing.used, standing.used) for standing in standings)
    return in_use.placements.get(used, found), number


_propose, _base = EpochMachine._propose, recovery._base
GUARDS: dict[str, tuple[object, str, object]] = {
    "numbers are never used twice": (EpochMachine, "_propose", _same_number),
    "a planned attempt is given up by its members' word": (EpochMachine, "_give_up", _no_word),
    "the newest placement that any used": (recovery, "_base", _oldest),
    "nothing is offered after a loss": (Mover, "_check", lambda mover: None),
    "sole copies are not masked": (Placement, "covers_without", lambda placement, ranks: True),
}


@pytest.mark.slow
@pytest.mark.parametrize("guard", GUARDS)
def test_each_guard_is_needed(guard: str, plans: list[ServePlan], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*GUARDS[guard])
    seeds = range(200)
    assert any(wrong_in(plans[seed % 2], seed) for seed in seeds), f"no history needs the guard: {guard}"


@pytest.mark.slow
def test_many_histories(plans: list[ServePlan]) -> None:
    all_right(plans, range(SEEDS, MANY))
