"""EPLB as DeepSeek describes it: copies for the largest load per copy, then greedy packing into fixed slots.

After the description at github.com/deepseek-ai/EPLB (global form). It assumes that tokens divide evenly over copies,
does not mind what a move costs, and may put two copies of an expert on one rank.
"""

import numpy as np
import numpy.typing as npt

from cluster.balance.policies.base import IntArray, Policy, Situation
from experts.placement import ABSENT, EMPTY, Placement

WINDOW = 100  # steps


class EplbPolicy(Policy):
    """Replans everything from the mean of the last steps, at every turn."""

    name = "eplb"
    split = "even"

    def plan(self, situation: Situation) -> Placement:
        return layout(situation.history[-WINDOW:].mean(axis=0), situation)


def layout(load: npt.NDArray[np.float64], situation: Situation) -> Placement:
    """The placement for mean loads [L, E]. Slots of dead ranks stay empty."""
    shape = situation.shape
    layers = len(load)
    absent = set(shape.absent)
    room = np.array(
        [
            sum(r not in shape.dead and r * shape.slots_per_rank + s not in absent for s in range(shape.slots_per_rank))
            for r in range(shape.ranks)
        ]
    )
    copies = replicas(load, int(room.sum()))
    table = np.full((layers, shape.slots), EMPTY, dtype=np.int64)
    table[:, sorted(absent)] = ABSENT
    for layer in range(layers):
        _pack(load[layer], copies[layer], room, table[layer].reshape(shape.ranks, shape.slots_per_rank))
    return Placement(situation.current.version + 1, shape.ranks, shape.slots_per_rank, table, "eplb")


def replicas(load: npt.NDArray[np.float64], slots: int) -> IntArray:
    """[L, E] copies: one each, then one more for the expert with the most tokens per copy until the slots are used."""
    layers, experts = load.shape
    copies = np.ones((layers, experts), dtype=np.int64)
    rows = np.arange(layers)
    for _ in range(slots - experts):
        copies[rows, (load / copies).argmax(axis=1)] += 1
    return copies


def _pack(load: npt.NDArray[np.float64], copies: IntArray, room: IntArray, table: IntArray) -> None:
    """Heaviest copy first, each to the least loaded rank with a free slot. table: [R, S], filled in place."""
    each = np.repeat(np.arange(len(load)), copies)
    weight = (load / copies)[each]
    total = np.zeros(len(room))
    free = room.copy()
    for i in np.argsort(-weight, kind="stable"):
        rank = int(np.where(free > 0, total, np.inf).argmin())
        table[rank, int(np.flatnonzero(table[rank] == EMPTY)[0])] = each[i]
        total[rank] += weight[i]
        free[rank] -= 1
