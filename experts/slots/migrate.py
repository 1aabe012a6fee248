"""Migration of one rank: brings experts into staging beside the running steps, and into their slots at a step's start.

A slot is written only by the step thread, at the start of the first step that routes by the new placement; until then
what is fetched lies in staging, so a transfer that fails, hangs or is dropped has changed nothing, and two experts can
change places without a third slot.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from experts.checkpoint.reader import CheckpointReader
from experts.placement import IntArray, Placement
from experts.slots.digest import digest_of
from experts.slots.loader import expert_jobs
from experts.slots.slots import ExpertSlots
from experts.slots.weights_server import MoveFailed, PeerSlot, fetch_expert

_LEAST_SECONDS = 10.0  # for any transfer; a slow one gets four times what its bandwidth needs


@dataclass(frozen=True, slots=True)
class Move:
    """Bring `expert` of `layer` for this rank's `slot`. sources: peers to try in order; the checkpoint comes last."""

    layer: int
    slot: int
    expert: int
    sources: tuple[PeerSlot, ...]


@dataclass(frozen=True, slots=True)
class Staged:
    """What came of a move.

    digest: of the weights
    error: why it failed, else empty
    seconds: it took
    origin: where the weights came from
    """

    move: Move
    digest: bytes
    error: str
    seconds: float
    origin: str


class Migration:
    """A rank's slots as peers and the supervisor see them. `switch` is called by the step thread, the rest by any."""

    def __init__(self, slots: ExpertSlots, held: IntArray, reader: CheckpointReader, secret: str) -> None:
        self._slots, self._reader, self._secret = slots, reader, secret
        self._lock = threading.Lock()
        self._held = np.array(held)  # [L, S] what each slot holds now
        self._staged: dict[tuple[int, int], tuple[int, tuple[torch.Tensor, ...]]] = {}
        self.switch_seconds = 0.0  # spent writing slots between steps

    def lookup(self, layer: int, slot: int, expert: int) -> tuple[torch.Tensor, ...]:
        """A slot's tensors if it holds `expert`. Raises KeyError with what it holds."""
        with self._lock:
            shape = self._held.shape
            if not (0 <= layer < shape[0] and 0 <= slot < shape[1]) or self._held[layer, slot] != expert:
                raise KeyError(f"slot {slot} of layer {layer} does not hold expert {expert}")
        return self._slots.parts(layer, slot)

    def stage(self, moves: Sequence[Move], bandwidth: float) -> list[Staged]:
        """Fetch each expert into staging, one after another. bandwidth: bytes/s. Failures are in the answer, not raised."""
        return [self._stage(move, bandwidth) for move in moves]

    def drop(self) -> None:
        """Forget what was staged."""
        with self._lock:
            self._staged.clear()

    def prepare(self, placement: Placement, rank: int) -> "Switch":
        """What the step thread is to do when `placement` comes into use. Raises MoveFailed if something is not staged."""
        target = placement.local(rank)
        with self._lock:
            changed = [tuple(map(int, at)) for at in np.argwhere((target != self._held) & (target >= 0))]
            for layer, slot in changed:
                expert = int(target[layer, slot])
                if self._staged.get((layer, slot), (-1,))[0] != expert:
                    raise MoveFailed(f"expert {expert} of layer {layer} is not staged for slot {slot}")
            taken = {(layer, slot): self._staged.pop((layer, slot))[1] for layer, slot in changed}
            return Switch(self, taken, np.array(target))

    def write(self, taken: dict[tuple[int, int], tuple[torch.Tensor, ...]], held: IntArray) -> None:
        """Copy staged weights into their slots; from the step thread, between steps."""
        started = time.perf_counter()
        for (layer, slot), parts in taken.items():
            for dest, source in zip(self._slots.parts(layer, slot), parts, strict=True):
                dest.copy_(source)
        with self._lock:
            self._held = held
        self.switch_seconds += time.perf_counter() - started

    def _stage(self, move: Move, bandwidth: float) -> Staged:
        started = time.perf_counter()
        parts = self._slots.like_a_slot(move.layer)
        errors = []
        for peer in move.sources:
            try:
                size = sum(part.nbytes for part in parts)
                seconds = max(_LEAST_SECONDS, 4 * size / bandwidth)
                digest = fetch_expert(peer, self._secret, move.layer, move.expert, parts, bandwidth, seconds)
            except MoveFailed as error:
                errors.append(str(error))
                continue
            return self._keep(move, parts, digest, started, f"{peer.host}:{peer.port}")
        try:
            for name, dest, index in expert_jobs(self._slots, move.layer, parts, move.expert, self._reader):
                self._reader.read_into(name, dest, index)
        except Exception as error:  # a folder that went away or changed under the server
            errors.append(f"checkpoint: {error}")
            return Staged(move, b"", "; ".join(errors), time.perf_counter() - started, "")
        return self._keep(move, parts, digest_of(parts), started, "checkpoint")

    def _keep(
        self, move: Move, parts: tuple[torch.Tensor, ...], digest: bytes, started: float, origin: str
    ) -> Staged:  # fmt: skip
        with self._lock:
            self._staged[move.layer, move.slot] = (move.expert, parts)
        return Staged(move, digest, "", time.perf_counter() - started, origin)


class Switch:
    """The change of a rank's slots to one placement version; called once, by the step thread."""

    def __init__(
        self, migration: Migration, taken: dict[tuple[int, int], tuple[torch.Tensor, ...]], held: IntArray
    ) -> None:
        self._migration, self._taken, self._held = migration, taken, held

    def __call__(self) -> None:
        self._migration.write(self._taken, self._held)
        self._taken = {}
