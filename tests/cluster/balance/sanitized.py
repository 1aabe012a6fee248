"""Run by test_sanitizers in a process of its own: random problems through C code built with sanitizers.

Arguments: the planner's library, the split's library.
"""

import ctypes
import sys

import numpy as np

import cluster.balance.kernel as kernel
from cluster.balance.cost import CostModel
from cluster.balance.forecast import rows_of
from cluster.balance.planner import PlanLimits, plan_first, plan_next
from cluster.balance.shape import ClusterShape
from experts.exchange.split import SplitPolicy, SplitTable
from experts.exchange.split_kernel import SplitKernel
from experts.placement import EMPTY, Placement

LIMITS = PlanLimits(layer_seconds=0.02)


def use(planner: str, split: str) -> tuple[object, object]:
    """Put the planner's library in place; the split's functions."""
    built = ctypes.CDLL(planner)
    for name, count in (
        ("tokenyard_layout", 2), ("tokenyard_repair", 2), ("tokenyard_improve", 3), ("tokenyard_times", 3)
    ):  # fmt: skip
        function = getattr(built, name)
        function.argtypes, function.restype = [ctypes.c_void_p] * count, ctypes.c_int
    kernel._library = lambda: built  # type: ignore[assignment]
    own = ctypes.CDLL(split)
    pointer = ctypes.c_void_p
    own.tokenyard_split.argtypes = [pointer, pointer, ctypes.c_int64, ctypes.c_int, pointer]
    own.tokenyard_quotas.argtypes = [pointer, pointer, ctypes.c_int, pointer]
    return own.tokenyard_split, own.tokenyard_quotas


def main() -> None:
    divide, quotas = use(*sys.argv[1:])
    for seed in range(200):
        rng = np.random.default_rng(seed)
        ranks, experts = int(rng.integers(1, 40)), int(rng.integers(1, 80))
        slots = -(-experts // ranks) + int(rng.integers(0, 4))
        shares = rng.dirichlet(np.full(experts, 0.4), (int(rng.integers(1, 8)), 1))
        loads = rng.poisson(shares * int(rng.integers(0, 4000))).astype(np.int64)
        dead = frozenset(rng.choice(ranks, int(rng.integers(0, max(ranks // 3, 1))), replace=False).tolist())
        speeds = tuple(rng.uniform(0.2, 2, ranks).tolist()) if seed % 2 else ()
        shape = ClusterShape(
            ranks, slots, int(rng.integers(0, 4)), dead, speeds, spread=seed % 3 == 0, min_copies=1 + seed % 4
        )
        table = np.full((1, ranks * slots), EMPTY, dtype=np.int64)
        order = rng.permutation(ranks * slots)
        table[0, order[:experts]] = rng.permutation(experts)
        table[0, order[experts:]] = rng.integers(-1, experts, len(order) - experts)
        placement = Placement(0, ranks, slots, table)
        made = SplitTable.of(placement, 0, SplitPolicy(floor=float(seed % 3) * 5, speeds=speeds))
        split = SplitKernel(made.waterfill, divide, quotas)
        split.quotas(np.append(0, loads[0, 0]), seed % 4)
        split.split(rng.integers(-1, experts, (seed % 50, 3)).astype(np.int16), seed % 4)
        if shape.live_slots >= experts:
            plan_first(rows_of(loads), shape, LIMITS)
            plan_next(rows_of(loads), shape, placement, CostModel(horizon=1e9), LIMITS)
    print("clean")


if __name__ == "__main__":
    main()
