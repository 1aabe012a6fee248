"""The kinds of exchange by name, each the whole way of a token between ranks. Adding one is a file and a line here."""

from collections.abc import Callable
from dataclasses import dataclass

from experts.epoch.membership import EpochRecord
from experts.errors import UserError
from experts.exchange.base import Exchange, ExchangeOrder
from experts.exchange.collective import CollectiveExchange
from experts.exchange.control import Ring
from experts.exchange.doorbell import Doorbell
from experts.exchange.links.exchange import LinksExchange
from experts.exchange.local import LocalExchange


@dataclass(frozen=True, slots=True)
class ExchangeKind:
    """join: takes a seat in an epoch, blocks until all members have come, raises RankLost; its bell is what the others ring,
        and what it calls to ring all
    meets: whether they meet at the store that the epoch's record names
    links: whether it uses its worker's links
    device: that it is for, None: any
    """

    join: Callable[[ExchangeOrder, EpochRecord, Doorbell, Ring], Exchange]
    meets: bool = False
    links: bool = False
    device: str | None = None


EXCHANGES = {
    "links": ExchangeKind(LinksExchange.join, links=True, device="cpu"),
    "gloo": ExchangeKind(CollectiveExchange.join, meets=True, device="cpu"),
    "nccl": ExchangeKind(CollectiveExchange.join, meets=True, links=True, device="cuda"),  # for headers
    "local": ExchangeKind(LocalExchange.join),
}


def exchange_kind(name: str) -> ExchangeKind:
    """The kind called `name`. Raises UserError."""
    if name not in EXCHANGES:
        raise UserError(repr(name), " or ".join(EXCHANGES), "exchange")
    return EXCHANGES[name]


def exchange_for(device: str, wanted: str = "auto") -> str:
    """The name of the exchange between ranks on a device. Raises UserError for one that is not for it."""
    fitting = [name for name, kind in EXCHANGES.items() if kind.device == device]
    if wanted == "auto":
        return fitting[0]
    if wanted not in fitting:
        raise UserError(f"{wanted!r} with tensors on {device}", " or ".join(fitting), "--exchange")
    return wanted
