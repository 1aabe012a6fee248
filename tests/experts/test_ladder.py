"""Ladders on made machines: what threads cost is given, time is counted, nothing runs."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.ladder import LONGEST, SETTLE, SHARE, SPELL, WARM, Ladder, rungs

Cost = Callable[[int], float]  # s that a piece takes with so many threads


def run(ladder: Ladder, cost: Cost, seconds: float) -> tuple[float, dict[int, float]]:
    """(pieces/s, seconds per number of threads) of `seconds` of work."""
    spent: dict[int, float] = {}
    pieces, total = 0, 0.0
    while total < seconds:
        threads = ladder.threads
        took = cost(threads)
        ladder.note(took, 1.0)
        spent[threads] = spent.get(threads, 0.0) + took
        pieces, total = pieces + 1, total + took
    return pieces / total, spent


@pytest.mark.parametrize(("most", "expected"), [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (8, (1, 2, 4, 8))])
def test_rungs(most: int, expected: tuple[int, ...]) -> None:
    assert rungs(most) == expected


@settings(max_examples=40, deadline=None)
@given(
    costs=st.lists(st.floats(2e-4, 0.1), min_size=2, max_size=2),
)
def test_the_quicker_one_is_found_and_the_other_costs_little(costs: list[float]) -> None:
    ladder = Ladder((1, 2))
    run(ladder, lambda threads: costs[threads - 1], LONGEST)
    speed, spent = run(ladder, lambda threads: costs[threads - 1], 20.0)
    assert speed * min(costs) > 0.92, spent
    slower = spent.get(1 + (costs[1] > costs[0]), 0.0)
    if costs[1] < 0.9 * costs[0] or costs[1] > 1.1 * costs[0]:
        assert slower <= SHARE * 20.0 + 2 * (SPELL + SETTLE + 2 * max(costs)), spent


def test_more_cores_are_climbed_to_the_number_that_serves_best() -> None:
    """Beside a program on ten of sixteen cores; above six threads every piece waits."""
    ladder = Ladder(rungs(16))

    def cost(threads: int) -> float:
        return 0.002 / threads + (0.005 if threads > 6 else 0.0)

    run(ladder, cost, 3.0)
    _, spent = run(ladder, cost, 20.0)
    assert spent[4] > 0.9 * 20.0, spent


@pytest.mark.parametrize("piece", [2e-4, 2e-3, 2e-2])
@pytest.mark.parametrize("stalls", [0.02, 0.3, 1.0])
def test_stalls_that_come_by_chance(piece: float, stalls: float) -> None:
    """A busy machine: every thread loses its core for 3 ms of each 6, and a barrier may wait for one that just did."""
    chance = random.Random(1)

    def cost(threads: int) -> float:
        own = piece / threads
        lost = int(own / 3e-3) + (chance.random() < own % 3e-3 / 3e-3)
        return own + 3e-3 * lost + (chance.uniform(2e-3, 6e-3) if threads > 1 and chance.random() < stalls else 0.0)

    best = min(sum(cost(threads) for _ in range(4000)) / 4000 for threads in (1, 2))
    speed, spent = run(Ladder((1, 2)), cost, 30.0)
    assert speed * best > 0.8, spent


def test_it_leaves_threads_that_stall_at_once_and_comes_back() -> None:
    ladder = Ladder((1, 2))

    def quiet(threads: int) -> float:
        return 5e-4 / threads

    def busy(threads: int) -> float:
        return 1e-3 if threads == 1 else 6e-2

    run(ladder, quiet, WARM)
    _, spent = run(ladder, quiet, 5.0)
    assert spent[2] > 0.95 * 5.0, spent
    _, spent = run(ladder, busy, 2.0)
    assert spent[2] <= 6 * 6e-2, spent  # the piece that shows it, and tries
    run(ladder, busy, 60.0)
    run(ladder, quiet, LONGEST)
    _, spent = run(ladder, quiet, 5.0)
    assert spent[2] > 0.95 * 5.0, spent


def test_one_terrible_try_is_forgiven_in_time() -> None:
    """A machine that was suspended during a piece gives an hour for it."""
    ladder = Ladder((1, 2))
    slow = iter([3600.0])
    run(ladder, lambda threads: next(slow, 1e-3) if threads == 2 else 2e-3, 3700.0)
    run(ladder, lambda threads: 2e-3 / threads, LONGEST)
    _, spent = run(ladder, lambda threads: 2e-3 / threads, 5.0)
    assert spent[2] > 0.95 * 5.0, spent


def test_cold_first_pieces_do_not_decide() -> None:
    """Memory that is touched for the first time makes the first pieces slow, whatever the threads."""
    ladder, cold = Ladder((1, 2)), iter([SPELL / 5] * 5)  # as long as a spell
    _, spent = run(ladder, lambda threads: next(cold, 1e-3 / threads), 2.0)
    assert spent[1] <= 2 * (SPELL + SETTLE), spent


def test_long_pieces_start_with_all_threads_and_are_not_tried_at_once() -> None:
    """A prompt of a large model: few pieces, of which none is to be lost."""
    _, spent = run(Ladder((1, 2)), lambda threads: 1.0 / threads, 20.0)
    assert spent.get(1, 0.0) <= 1.0, spent
