"""Fills a rank's slots from a checkpoint. Reads only the experts that the rank's slots hold, each once."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from experts.checkpoint.reader import CheckpointReader, Job
from experts.slots.slots import ExpertSlots
from experts.spec import ExpertsSpec

Progress = Callable[[int, int], None]  # bytes done, bytes in all


def load_slots(
    slots: ExpertSlots, held: npt.NDArray[np.int64], reader: CheckpointReader, progress: Progress | None = None
) -> None:
    """Copy every slot's expert into it, several at once and without a second copy.

    held: int64 [L, S] logical expert per slot of this rank, negative = empty (such a slot is zeroed).
    A copy of an expert on the same rank is copied from its first slot. Raises UserError for a tensor that is
    missing or of another shape.
    """
    done, total = 0, slots.nbytes
    jobs: list[Job] = []
    twins: list[tuple[int, int, int]] = []  # layer, first slot, copy
    for layer in range(held.shape[0]):
        first: dict[int, int] = {}
        for slot, expert in enumerate(held[layer].tolist()):
            if expert < 0:
                slots.w13[layer][slot].zero_()
                slots.w2[layer][slot].zero_()
            elif expert in first:
                twins.append((layer, first[expert], slot))
            else:
                first[expert] = slot
                jobs += expert_jobs(slots, layer, slots.parts(layer, slot), expert, reader)

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    reader.read_many(jobs, tell)
    for layer, source, copy in twins:
        slots.w13[layer][copy].copy_(slots.w13[layer][source])
        slots.w2[layer][copy].copy_(slots.w2[layer][source])
    tell(total - done)


def check_experts(spec: ExpertsSpec, reader: CheckpointReader) -> None:
    """Raise UserError unless every expert of every layer is there as `load_slots` needs it; reads headers only."""
    shapes = ExpertSlots(spec, 1, torch.float32, "meta")
    for layer in range(spec.moe_layers):
        for expert in range(spec.experts):
            for name, dest, row in expert_jobs(shapes, layer, shapes.parts(layer, 0), expert, reader):
                reader.check(name, tuple(dest.shape), row)


def expert_jobs(
    slots: ExpertSlots, layer: int, parts: tuple[torch.Tensor, ...], expert: int, reader: CheckpointReader
) -> list[Job]:
    """What to read into `parts`, one slot's tensors: three tensors, or two rows of fused ones."""
    spec, names = slots.spec, slots.spec.names
    where = {"layer": spec.layers[layer], "expert": expert}
    w13, w2 = parts
    fused = names.fused_gate_up.format(**where)
    if not reader.has(names.gate.format(**where)) and reader.has(fused):
        return [(fused, w13, expert), (names.fused_down.format(**where), w2, expert)]
    gate, up = w13.split(spec.width)
    return [
        (names.gate.format(**where), gate, None),
        (names.up.format(**where), up, None),
        (names.down.format(**where), w2, None),
    ]
