"""Hardware profiles for capacity: what a rank's device, its node and the network between nodes can do, with sources.

Peak figures are from data sheets; what share of them is reached is a field of its own. Latencies and shares are our
estimates unless a source is named.
"""

from dataclasses import dataclass

import psutil

from experts.errors import UserError

_GB = 1e9


@dataclass(frozen=True, slots=True)
class Hardware:
    """One rank per device.

    flops, flops_fp8: peak, dense bf16 and fp8 (0 = none), FLOP/s
    mfu: share reached in grouped products
    memory_bandwidth, link, network: bytes/s, peak, of a rank, one way
    *_share: reached
    memory: bytes
    ranks_per_node
    *_latency: s of a small collective inside a node, and between nodes
    source: of the peaks
    """

    name: str
    flops: float
    memory_bandwidth: float
    memory: float
    ranks_per_node: int
    link: float
    network: float
    source: str
    flops_fp8: float = 0.0
    mfu: float = 0.5
    memory_share: float = 0.8
    network_share: float = 0.7
    link_latency: float = 12e-6
    network_latency: float = 30e-6
    layer_latency: float = 100e-6  # small kernels of a layer; from three one-sequence figures, see docs/balancing.md

    @property
    def work(self) -> float:
        """FLOP/s reached in bf16."""
        return self.flops * self.mfu

    def work_on(self, weights: str) -> float:
        """FLOP/s reached on weights of that name; only fp8 is multiplied as it is stored."""
        return self.flops_fp8 * self.mfu if weights == "fp8" and self.flops_fp8 else self.work

    @property
    def reading(self) -> float:
        """Bytes/s of weights reached."""
        return self.memory_bandwidth * self.memory_share


PROFILES = (
    Hardware(
        "a100-80g", 312e12, 2039 * _GB, 80 * _GB, 8, 300 * _GB, 25 * _GB,
        "NVIDIA A100 80GB SXM data sheet (312 TFLOP/s bf16, 2,039 GB/s, NVLink 600 GB/s both ways); DGX A100: 200 Gb/s a GPU",
    ),
    Hardware(
        "h100-80g", 989e12, 3350 * _GB, 80 * _GB, 8, 450 * _GB, 50 * _GB,
        "NVIDIA H100 SXM data sheet (989 TFLOP/s bf16 dense, 3.35 TB/s, NVLink 900 GB/s both ways); DGX H100: 400 Gb/s a GPU",
        flops_fp8=1979e12,
    ),
    Hardware(
        "h800", 989e12, 3350 * _GB, 80 * _GB, 8, 200 * _GB, 50 * _GB,
        "the H100's data sheet but for NVLink, 400 GB/s both ways (DeepEP's documents measure 158 GB/s one way); 400 Gb/s a GPU",
        flops_fp8=1979e12,
    ),
    Hardware(
        "h200", 989e12, 4800 * _GB, 141 * _GB, 8, 450 * _GB, 50 * _GB,
        "NVIDIA H200 SXM data sheet (989 TFLOP/s bf16 dense, 4.8 TB/s, 141 GB, NVLink 900 GB/s both ways); 400 Gb/s a GPU",
        flops_fp8=1979e12,
    ),
    Hardware(
        "h20", 148e12, 4000 * _GB, 96 * _GB, 8, 450 * _GB, 50 * _GB,
        "NVIDIA H20 as resellers list it (148 TFLOP/s bf16, 296 fp8, 4.0 TB/s, 96 GB, NVLink 900 GB/s both ways); 400 Gb/s a GPU",
        flops_fp8=296e12,
    ),
    Hardware(
        "cpu-2c", 290e9, 31 * _GB, float(psutil.virtual_memory().total), 1, 1.5 * _GB, 1.5 * _GB,
        "two cores with AVX-512 BF16, measured: 290 GFLOP/s through oneDNN, 31 GB/s read, gloo 1 to 2 GB/s on one machine",
        mfu=0.55, memory_share=0.9, link_latency=0.15e-3, network_latency=0.15e-3, layer_latency=50e-6,
    ),
)  # fmt: skip


def hardware(name: str) -> Hardware:
    """The profile of a name. Raises UserError with the known ones."""
    for one in PROFILES:
        if one.name == name:
            return one
    raise UserError(f"hardware {name!r}", f"one of {', '.join(p.name for p in PROFILES)}", "--hardware")
