"""CostModel: what a move costs and how long its gain lasts, in one place for planner, balancer and simulator."""

from dataclasses import dataclass

from experts.errors import UserError
from experts.exchange.split import SplitPolicy

# Hunyuan-A13B in bf16 on nodes of eight A100s: an expert of a layer is 3 x 4096 x 3072 x 2 bytes. A step of 2,048
# tokens spends about 25 ms in 32 layers of experts (0.155 TFLOP a rank and layer at 200 TFLOP/s); NVLink leaves some
# 200 GB/s beside the traffic of the steps.
HUNYUAN_EXPERT_BYTES = 75_497_472
A100_STEP_SECONDS = 0.025
NVLINK_FREE = 200e9  # bytes/s
NETWORK_SLOWER = 8.0  # times NVLink's 200 GB/s over the 25 GB/s (200 Gb/s) of a GPU's port
HORIZON = 200  # steps


@dataclass(frozen=True, slots=True)
class CostModel:
    """step_seconds: a step's time in experts, over all layers
    expert_bytes: one expert of one layer
    bandwidth: bytes/s free for moves
    horizon: steps that a gain lasts
    far: what fetching from another node costs, in fetches from the same one
    """

    step_seconds: float = A100_STEP_SECONDS
    expert_bytes: float = HUNYUAN_EXPERT_BYTES
    bandwidth: float = NVLINK_FREE
    horizon: float = HORIZON
    far: float = NETWORK_SLOWER

    def check(self) -> None:
        """Raise UserError for a value that is not above 0."""
        for name in ("step_seconds", "expert_bytes", "bandwidth", "horizon", "far"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise UserError(str(value), "a number above 0", f"--{name.replace('_', '-')}")

    def move_seconds(self) -> float:
        """Time of fetching one expert."""
        return self.expert_bytes / self.bandwidth

    def price(self, layers: int) -> float:
        """Excess (as a share of the mean rank's load) that one move must save in its layer to earn what it costs."""
        return self.move_seconds() / (self.horizon * self.step_seconds / layers)


# Tokens whose computing takes as long as reading an expert's weights. A100 and H200 in bf16: 60 % of the data sheet's
# FLOP/s over 80 % of its bytes/s (312 TFLOP/s, 2.04 TB/s; 989, 4.8). CPUs: about 100 GFLOP/s over 25 GB/s here.
FLOOR_TOKENS = {"cuda": 120.0, "cpu": 4.0}


def split_policy(device: str) -> SplitPolicy:
    """What the split of a cluster on such devices goes by."""
    return SplitPolicy(floor=FLOOR_TOKENS[device])
