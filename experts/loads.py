"""ExpertLoads: how many tokens each slot of a rank has computed. Knows nothing of who reads it or why."""

import threading

import torch


class ExpertLoads:
    """Running totals per MoE layer and slot. `add` is called by the step thread, `snapshot` by any."""

    def __init__(self, layers: int, slots: int, device: torch.device | str = "cpu") -> None:
        self._lock = threading.Lock()
        self._slots = slots
        self._totals = torch.zeros(layers, slots + 1, dtype=torch.int64, device=device)  # the last column is "none"

    def add(self, layer: int, slots: torch.Tensor) -> None:
        """Count the tokens of one layer. slots: [N, K] int32 rank-local, -1 = none; device of this object."""
        if slots.numel() == 0:
            return
        flat = slots.reshape(-1).long()
        flat = torch.where(flat < 0, self._slots, flat)
        with self._lock:
            self._totals[layer].add_(torch.bincount(flat, minlength=self._slots + 1))

    def snapshot(self) -> torch.Tensor:
        """[L, S] int64 totals since the start, a copy on the CPU."""
        with self._lock:
            return self._totals[:, :-1].to("cpu", copy=True)
