"""ExpertLayers: all MoE layers of a rank as one callable. What a model sees of experts, ranks and transports."""

import time

import torch

from experts.crew import Crew
from experts.epoch.agreement import StepHeader
from experts.exchange.base import Exchange
from experts.exchange.wire import ExpertBatch, Route
from experts.slots.loads import ExpertLoads
from experts.slots.slots import ExpertSlots
from experts.spec import ExpertsSpec


class ExpertLayers:
    """Dispatch, compute what arrived here, combine: the same on every rank of every topology.

    slots: None on a rank that holds no experts. All calls but `loads.snapshot` come from the step thread.
    """

    def __init__(
        self, spec: ExpertsSpec, exchange: Exchange, slots: ExpertSlots | None, dtype: torch.dtype, device: str,
        crew: Crew | None = None,
    ) -> None:  # fmt: skip
        """crew: of the step thread, None: that thread alone."""
        self.spec = spec
        self.exchange = exchange
        self.slots = slots
        self.crew = crew or Crew(1)
        self.loads = ExpertLoads(spec.moe_layers, slots.slots if slots else 0, device, exchange.size)
        self.compute_seconds = 0.0  # in this rank's experts; waiting for peers is not in it
        self._counted_seconds = 0.0  # of them, in steps that ended
        self._computed: ExpertBatch | None = None  # of the layer under way, not counted yet
        self._no_x = torch.empty((0, spec.hidden), dtype=dtype, device=device)
        self._no_y = torch.empty((0, spec.hidden), dtype=torch.float32, device=device)
        self._no_route = Route(
            torch.empty((0, spec.top_k), dtype=torch.int32, device=device),
            torch.empty((0, spec.top_k), dtype=torch.float32, device=device),
        )

    def __call__(self, layer: int, x: torch.Tensor, route: Route) -> torch.Tensor:
        """[T, H] float32: the weighted sum of each token's experts of MoE layer `layer`.

        x: [T, H] activations in the experts' dtype; T may be 0. Raises RankLost when a member is gone.
        """
        with self.crew.aside():
            sums = self.exchange.layer(layer, x, route, self._compute)
            if (batch := self._computed) is not None:
                self._computed = None
                self.loads.add(layer, batch)  # when the sums are on their way
            return sums

    def _compute(self, layer: int, batch: ExpertBatch) -> torch.Tensor:
        """[N, H] float32: what this rank's experts make of the rows that arrived here."""
        started = time.perf_counter()
        if self.slots is None:
            y = self._no_y
        else:
            with self.crew.part("experts", 2 * batch.slots.numel() * self.spec.hidden * self.spec.width):
                y = self.slots.forward(layer, batch)
            self._computed = batch
        self.compute_seconds += time.perf_counter() - started
        return y

    def end_step(self, header: StepHeader) -> None:
        """Close the books of a step in which layers ran."""
        self.loads.end_step(header, self.compute_seconds - self._counted_seconds)
        self._counted_seconds = self.compute_seconds

    def abandon_step(self) -> None:
        """A step broke before it ended, and is run again."""
        self.loads.abandon_step()
        self.compute_seconds = self._counted_seconds

    def run_empty(self) -> None:
        """Take part in every layer of a step without tokens of this rank's own."""
        for layer in range(self.spec.moe_layers):
            self(layer, self._no_x, self._no_route)
