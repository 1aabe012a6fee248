"""Messages between us and a policy's process: msgpack with int64 arrays. Reading one runs no code of the sender's.

A frame is 8 bytes of length, little-endian, and as many bytes of msgpack.
"""

import math
from dataclasses import asdict
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from cluster.balance.cost import CostModel
from cluster.balance.policies.base import Situation
from cluster.balance.shape import ClusterShape
from experts.placement import Placement

LENGTH_BYTES = 8
_ARRAY = 1  # msgpack's type number of an array: shape, then the bytes


class Nonsense(Exception):
    """Bytes that are no message; the text says what they are."""


def pack(message: dict[str, Any]) -> bytes:
    """A message as a frame."""
    body: bytes = msgpack.packb(message, default=_array)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


def unpack(body: bytes) -> dict[str, Any]:
    """The message of a frame's body. Raises Nonsense."""
    try:
        message = msgpack.unpackb(body, ext_hook=_read_array)
    except (ValueError, TypeError, KeyError, RecursionError, msgpack.UnpackException) as error:
        raise Nonsense(f"{len(body)} bytes that are no message ({type(error).__name__})") from None
    if not isinstance(message, dict):
        raise Nonsense(f"a message that is a {type(message).__name__}")
    return message


def situation_message(situation: Situation) -> dict[str, Any]:
    """A situation as values that `pack` takes."""
    shape, current = situation.shape, situation.current
    return {
        "history": situation.history,
        "future": situation.future,
        "current": placement_message(current),
        "shape": asdict(shape) | {"dead": sorted(shape.dead), "absent": sorted(shape.absent)},
        "cost": asdict(situation.cost),
        "interval": situation.interval,
        "free": situation.free,
    }


def read_situation(message: dict[str, Any]) -> Situation:
    """What `situation_message` gave, with arrays of its own."""
    shape = dict(message["shape"])
    for name, kind in (("dead", frozenset), ("absent", frozenset), ("speeds", tuple), ("nodes", tuple)):
        shape[name] = kind(shape[name])
    return Situation(
        message["history"], read_placement(message["current"]), ClusterShape(**shape), CostModel(**message["cost"]),
        message["interval"], message["free"], message["future"],
    )  # fmt: skip


def placement_message(placement: Placement) -> dict[str, Any]:
    """A placement as values that `pack` takes."""
    return {
        "version": int(placement.version),
        "ranks": int(placement.ranks),
        "slots_per_rank": int(placement.slots_per_rank),
        "slot_expert": np.asarray(placement.slot_expert, dtype=np.int64),
    }


def read_placement(message: Any, where: str = "placement") -> Placement:
    """What `placement_message` gave. Raises Nonsense, or UserError for a table that breaks a placement's rules."""
    try:
        version, ranks, slots = (message[name] for name in ("version", "ranks", "slots_per_rank"))
        table = message["slot_expert"]
    except (KeyError, TypeError, IndexError):
        raise Nonsense("a message without a placement") from None
    if not (all(type(n) is int for n in (version, ranks, slots)) and isinstance(table, np.ndarray)):
        raise Nonsense("a placement of other types than whole numbers and a table")
    if table.ndim != 2 or 0 in table.shape:
        raise Nonsense(f"a table of shape {list(table.shape)}")
    return Placement(version, ranks, slots, table, where)


def _array(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype == np.int64:
        return msgpack.ExtType(_ARRAY, msgpack.packb(value.shape) + np.ascontiguousarray(value).tobytes())
    raise TypeError(f"{type(value).__name__} in a message")


def _read_array(kind: int, data: bytes) -> npt.NDArray[np.int64]:
    if kind != _ARRAY:
        raise ValueError(f"type {kind}")
    reader = msgpack.Unpacker()
    reader.feed(data)
    shape = reader.unpack()
    raw = data[reader.tell() :]
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("no shape")
    if math.prod(shape) * 8 != len(raw):
        raise ValueError(f"{len(raw)} bytes for shape {shape}")
    return np.frombuffer(raw, dtype=np.int64).reshape(shape).copy()
