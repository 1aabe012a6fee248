"""Rates of the last seconds."""

import pytest

from router_svc.engine.recent import WINDOW, Rates, Recent


def test_rates_are_of_the_window_and_of_a_shorter_time_where_work_began_later() -> None:
    recent = Recent()
    assert recent.rates(1000.0) == Rates()
    for tenth in range(30):
        recent.add(1000.0 + tenth / 10, 5, [0.25, 0.75] if tenth == 0 else [])
    rates = recent.rates(1003.0)
    assert rates.tokens_per_second == pytest.approx(50)
    assert (rates.first_tokens, rates.first_token_seconds) == (2, 0.5)
    assert recent.rates(1005.0).tokens_per_second == pytest.approx(30), "idle since"
    assert recent.rates(1000.0 + WINDOW + 3) == Rates(), "long ago"
    recent.add(1000.0 + 3 * WINDOW, 7, [])
    assert recent.rates(1000.0 + 3 * WINDOW).tokens_per_second == 7, "a second at least"
