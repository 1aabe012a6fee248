"""Copies against no copies at every batch size, where a slot in use costs at least reading its weights.

Cost of a rank = sum over its slots in use of max(floor, tokens); a layer takes as long as its slowest rank. What is said
is that time with spare slots over that of the same model without them: never above 1, if the split is right.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cluster.balance.forecast import forecast
from cluster.balance.planner import PlanLimits, plan_first
from cluster.balance.shape import ClusterShape
from cluster.simulate.traffic import Traffic, make_loads
from experts.exchange.split import SplitPolicy, SplitTable, quotas
from experts.placement import Placement

BATCHES = (1, 8, 32, 64, 128, 256, 512, 1024, 4096, 16384, 65536)
FLOOR = 125.0  # tokens that reading an expert's weights costs: bf16 on H200
_RANKS, _LAYERS, _STEPS, _PLANNED = 8, 4, 60, 30


def ratios(
    slots_per_rank: int, regime: str = "zipf", seed: int = 1, limits: PlanLimits | None = None
) -> Iterator[dict[str, object]]:
    """A dict per batch size: time over that without copies, with the floor in the split and without it."""
    shape = ClusterShape(_RANKS, slots_per_rank)
    for batch in BATCHES:
        loads = make_loads(Traffic(regime, _STEPS, _LAYERS, 64, 8, batch, seed))
        bare = Placement.first(_LAYERS, 64, _RANKS, 64 // _RANKS)
        planned = plan_first(forecast(loads[:_PLANNED], 20), shape, limits or PlanLimits()).placement
        base = _time(loads[_PLANNED:], bare, SplitPolicy(FLOOR))
        yield {
            "config": f"hunyuan-8r-{_RANKS * slots_per_rank}s", "regime": regime, "batch": batch,
            "with floor": round(_time(loads[_PLANNED:], planned, SplitPolicy(FLOOR)) / base, 4),
            "without": round(_time(loads[_PLANNED:], planned, SplitPolicy()) / base, 4),
        }  # fmt: skip


def _time(loads: npt.NDArray[np.int64], placement: Placement, policy: SplitPolicy) -> float:
    """Sum over steps and layers of the slowest rank's cost, whatever floor the split knew of."""
    total = 0.0
    for layer in range(placement.layers):
        table = SplitTable.of(placement, layer, policy)
        fill = table.waterfill
        single = np.setdiff1d(np.arange(1, len(table.lookup)), fill.expert)
        slots = np.concatenate([table.lookup[single], fill.slot])
        for row in loads[:, layer]:
            counts = np.append(0, row)
            tokens = np.concatenate([counts[single], quotas(table, counts)])
            cost = np.where(tokens > 0, np.maximum(tokens, FLOOR), 0)
            total += float(np.bincount(slots // placement.slots_per_rank, cost, placement.ranks).max())
    return total
