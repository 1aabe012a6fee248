"""What a placement is worth on expected loads, for any policy's."""

import numpy as np

from cluster.balance.forecast import Rows
from cluster.balance.kernel import LayerPlanner
from cluster.balance.shape import ClusterShape
from experts.placement import Placement


def predicted_excess(rows: Rows, placement: Placement, shape: ClusterShape) -> float:
    """Time of the busiest ranks over the mean of the live ones, minus 1, over all layers and rows, under the exact split."""
    busiest = mean = 0.0
    alive = shape.pace > 0
    for loads, held in zip(rows.loads, placement.slot_expert.astype(np.int16), strict=True):
        times = LayerPlanner(shape, loads, rows.weight).times(held)
        busiest += float(rows.weight @ times.max(axis=1))
        mean += float(rows.weight @ times[:, alive].mean(axis=1))
    return busiest / mean - 1 if mean else 0.0
