"""Ranks' speeds from what they computed and how long it took."""

import numpy as np

from cluster.balance.speeds import RankSpeeds, relative_speeds


def rows(speeds: list[float], seed: int, noise: float = 0.05, fixed: float = 1e-3) -> tuple[np.ndarray, ...]:
    """20 rows: work, seconds and steps of ranks of such speeds, whose loads differ."""
    rng = np.random.default_rng(seed)
    work = rng.uniform(200, 900, (20, len(speeds))) * np.linspace(0.5, 1.5, len(speeds))
    steps = rng.integers(1, 4, 20).astype(float)
    seconds = (fixed * steps[:, None] + 1e-5 * work) / np.array(speeds) * rng.lognormal(0, noise, work.shape)
    return work, seconds, steps


def test_the_slow_rank_is_found_and_a_light_load_is_not_slowness() -> None:
    for fixed in (0.0, 2e-3, 2e-2):
        got = relative_speeds(*rows([1, 1, 0.4, 1], 0, fixed=fixed))
        assert abs(got[2] - 0.4) < 0.06
        assert np.abs(got[[0, 1, 3]] - 1).max() < 0.12
        alike = relative_speeds(*rows([1, 1, 1, 1], 1, fixed=fixed))
        assert np.abs(alike - 1).max() < 0.1


def test_a_speed_counts_after_three_judgements_that_agree() -> None:
    speeds = RankSpeeds()
    for turn in range(10):
        speeds.judge([0, 1, 2, 3], *rows([1, 1, 1, 0.1 if turn % 2 else 1], turn))
        assert speeds.of(4) == (), "a disturbance that passes changes nothing"
    for turn in range(3):
        speeds.judge([0, 1, 2, 3], *rows([1, 1, 1, 0.5], 20 + turn))
    assert speeds.of(4)[:3] == (1, 1, 1)
    assert 0.4 < speeds.of(4)[3] < 0.6
    for turn in range(3):
        speeds.judge([0, 1, 2, 3], *rows([1, 1, 1, 1], 30 + turn))
    assert speeds.of(4) == (), "a rank that recovered is like the others"


def test_another_process_on_a_seat_starts_without_a_record() -> None:
    speeds = RankSpeeds()
    for turn in range(3):
        speeds.judge([0, 2, 5], *rows([1, 0.5, 1], turn))
    assert speeds.of(6)[2] < 0.7
    speeds.forget(2)
    assert speeds.of(6) == ()


def test_ranks_without_work_are_not_judged() -> None:
    work, seconds, steps = rows([1, 1, 1], 0)
    work[:, 1] = seconds[:, 1] = 0
    assert relative_speeds(work, seconds, steps)[1] == 1
    assert relative_speeds(work * 0, seconds, steps).tolist() == [1, 1, 1]
