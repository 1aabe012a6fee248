"""Which attention rank gets a request: the one with the least outstanding work, its prefix's own rank if that is near."""

from collections import OrderedDict
from hashlib import blake2b

from router_svc.request import EngineRequest

_PREFIX = 64  # tokens that name a prefix
_REMEMBERED = 65536  # prefixes
_SLACK = 1.25  # a rank that has the prefix may have so much more work than the least loaded one


class Picker:
    """Pure book-keeping of one ingress. Work is counted in tokens that may still have to run."""

    def __init__(self, ranks: list[int]) -> None:
        self._work = dict.fromkeys(ranks, 0)
        self._homes: OrderedDict[bytes, int] = OrderedDict()

    def pick(self, request: EngineRequest) -> int:
        """The rank to send to; its work grows until `done`."""
        least = min(self._work, key=lambda rank: (self._work[rank], rank))
        key = blake2b(repr(request.prompt_ids[:_PREFIX]).encode(), digest_size=8).digest()
        home = self._homes.get(key, least)
        cost = _cost(request)
        if home not in self._work or self._work[home] > _SLACK * (self._work[least] + cost):
            home = least
        self._homes[key] = home
        self._homes.move_to_end(key)
        if len(self._homes) > _REMEMBERED:
            self._homes.popitem(last=False)
        self._work[home] += cost
        return home

    def done(self, rank: int, request: EngineRequest) -> None:
        """The request is no longer with the rank."""
        if rank in self._work:
            self._work[rank] -= _cost(request)

    def drop(self, rank: int) -> None:
        """The rank is gone."""
        self._work.pop(rank, None)

    @property
    def ranks(self) -> list[int]:
        """Ranks that may be picked."""
        return list(self._work)


def _cost(request: EngineRequest) -> int:
    return len(request.prompt_ids) + request.n * min(request.sampling.max_tokens, 512)
