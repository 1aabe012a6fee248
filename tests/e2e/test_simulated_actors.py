"""`simulate --actors`: real Ray actors, exchange, balancer and migration under hot-spot scenarios."""

from dataclasses import replace

import numpy as np
import pytest

from cluster.simulate.actor_run import ActorSettings
from cluster.simulate.actors import run_actors
from cluster.simulate.members import parse_changes
from experts.errors import UserError

SETTINGS = ActorSettings(
    ranks=3, slots_per_rank=7, tokens=96, top_k=3, steps=260, interval=12, token_seconds=10e-6
)  # fmt: skip


def hot_spot(steps: int, hot: list[int | None]) -> np.ndarray:
    """[T, 2, 16] loads where one expert after another takes half of all tokens; None: all alike."""
    loads = np.empty((steps, 2, 16), dtype=np.int64)
    for t in range(steps):
        expert = hot[t * len(hot) // steps]
        weights = np.ones(16)
        if expert is not None:
            weights[expert] = 5
        loads[t] = np.minimum((96 * 3 * weights / weights.sum()).astype(np.int64), 96)
    return loads


def test_actors_run_every_step_and_their_answers_are_right(http_port: int) -> None:
    run = run_actors(hot_spot(60, [3]), "tokenyard", replace(SETTINGS, steps=60))
    assert run.steps == 60
    assert run.error < 1e-5


@pytest.mark.slow
def test_a_hot_expert_gets_a_copy_and_the_slowest_ranks_load_falls(http_port: int) -> None:
    loads = hot_spot(300, [3, 9])
    still = run_actors(loads, "none", SETTINGS)
    moved = run_actors(loads, "tokenyard", SETTINGS)
    assert still.moves == 0
    assert moved.moves > 0
    assert moved.placement_version > 0
    assert moved.excess < still.excess, "balancing must lower the busiest rank's load"
    assert moved.excess_last < 0.6 * still.excess_last
    for run in (still, moved):
        assert run.error < 1e-5, "answers are the same wherever experts are"
        assert run.steps == SETTINGS.steps
    assert abs(still.excess - still.excess_predicted) < 0.02, "the split's model is what the ranks counted"


@pytest.mark.slow
def test_a_rank_leaves_and_a_new_one_joins_while_tokens_flow(http_port: int) -> None:
    loads = hot_spot(300, [5])
    changes = parse_changes(["1@60"], ["1@160"])
    settings = replace(SETTINGS, slots_per_rank=9, steps=500, changes=changes)
    run = run_actors(loads, "tokenyard", settings)
    left, joined = run.changes
    assert (left.rank, left.joined, joined.rank, joined.joined) == (1, False, 1, True)
    assert 60 <= left.step < joined.step < 500
    assert run.steps == 500, "no step was lost"
    assert run.error < 1e-5, "answers are the same whoever takes part"
    assert run.moves >= 8, "what only rank 1 held went elsewhere, and experts came back"
    assert run.excess_last < 0.15, "the new rank, which came with nothing, carries its part in the end"


@pytest.mark.slow
def test_a_slow_rank_is_found_and_gets_less(http_port: int) -> None:
    settings = replace(SETTINGS, steps=200, token_seconds=200e-6, speeds=(1.0, 0.4, 1.0))
    run = run_actors(hot_spot(300, [None]), "tokenyard", settings)
    assert run.error < 1e-5
    assert run.excess_first < 0.2 < run.excess_last, "the others take over what the slow one can't do in time"


def test_settings_that_can_not_be_are_told() -> None:
    loads = hot_spot(10, [None])
    with pytest.raises(UserError, match="12 slots, expected at least 16"):
        run_actors(loads, "none", ActorSettings(3, 4, 96, 3, 10))
    with pytest.raises(UserError, match="policy 'best'"):
        run_actors(loads, "best", SETTINGS)
