"""The kinds of exchange by name, each the whole way of a token between ranks. Adding one is a file and a line here."""

from collections.abc import Callable
from dataclasses import dataclass

from experts.epoch.membership import EpochRecord
from experts.errors import UserError
from experts.exchange.base import Exchange, ExchangeOrder
from experts.exchange.collective import CollectiveExchange
from experts.exchange.control import Ring
from experts.exchange.doorbell import Doorbell
from experts.exchange.local import LocalExchange


@dataclass(frozen=True, slots=True)
class ExchangeKind:
    """join: takes a seat in an epoch, blocks until all members have come, raises RankLost; its bell is what the others ring,
        and what it calls to ring all
    meets: whether they meet at the store that the epoch's record names
    """

    join: Callable[[ExchangeOrder, EpochRecord, Doorbell, Ring], Exchange]
    meets: bool


EXCHANGES = {
    "collective": ExchangeKind(CollectiveExchange.join, meets=True),
    "local": ExchangeKind(LocalExchange.join, meets=False),
}


def exchange_kind(name: str) -> ExchangeKind:
    """The kind called `name`. Raises UserError."""
    if name not in EXCHANGES:
        raise UserError(repr(name), " or ".join(EXCHANGES), "exchange")
    return EXCHANGES[name]
