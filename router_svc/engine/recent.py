"""Recent: tokens drawn and waits for first tokens over the last seconds. No torch and no clock: `now` is passed in."""

from collections.abc import Sequence
from typing import NamedTuple

WINDOW = 10  # s


class Rates(NamedTuple):
    """tokens_per_second: generated
    first_tokens: requests whose first token came
    first_token_seconds: what they waited for it, on average
    """

    tokens_per_second: float = 0.0
    first_tokens: int = 0
    first_token_seconds: float = 0.0


class _Bucket(NamedTuple):
    second: int
    tokens: int = 0
    firsts: int = 0
    waited: float = 0.0


class Recent:
    """Written by one thread, read by any: a bucket a second, each replaced whole."""

    def __init__(self) -> None:
        self._buckets = [_Bucket(-WINDOW)] * (WINDOW + 1)

    def add(self, now: float, tokens: int, waits: Sequence[float]) -> None:
        """Tokens that a step drew; waits: of the requests whose first token is among them, s."""
        second = int(now)
        place = second % len(self._buckets)
        old = self._buckets[place]
        old = old if old.second == second else _Bucket(second)
        self._buckets[place] = _Bucket(second, old.tokens + tokens, old.firsts + len(waits), old.waited + sum(waits))

    def rates(self, now: float) -> Rates:
        """Over the window, or over less where nothing was drawn at its start."""
        live = [b for b in self._buckets if int(now) - WINDOW < b.second <= int(now) and b.tokens]
        if not live:
            return Rates()
        span = max(now - min(bucket.second for bucket in live), 1.0)
        firsts = sum(bucket.firsts for bucket in live)
        waited = sum(bucket.waited for bucket in live)
        return Rates(sum(bucket.tokens for bucket in live) / span, firsts, waited / firsts if firsts else 0.0)
