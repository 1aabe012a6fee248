"""ExpertsSpec: the routed experts of a model, as an expert rank needs to know them. Pure data."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """Tensor names on disk, with {layer} (the model's layer index) and {expert} as fields.

    gate, up: [I, H]
    down: [H, I]

    The fused forms are [E, 2I, H] (gate rows first) and [E, H, I], as some third-party saves have them; a reader tries
    the single names first.
    """

    gate: str
    up: str
    down: str
    fused_gate_up: str
    fused_down: str


@dataclass(frozen=True, slots=True)
class ExpertsSpec:
    """Routed experts of a model. L MoE layers, E logical experts each, top K, hidden H, width I.

    `layers[i]` is the model's layer index of MoE layer i: everywhere else in `experts`, "layer" means i.
    `chosen[i]`: experts that a token of MoE layer i goes to. Where they differ, K is the most, and routes of other
    layers are padded with -1.
    """

    layers: tuple[int, ...]
    experts: int
    chosen: tuple[int, ...]
    hidden: int
    width: int
    activation: str  # "silu"
    names: ExpertNames

    @property
    def top_k(self) -> int:
        """K, the columns of a route."""
        return max(self.chosen)

    @property
    def moe_layers(self) -> int:
        """L, the number of MoE layers."""
        return len(self.layers)

    @property
    def parameters_per_expert(self) -> int:
        """Weights of one logical expert of one layer."""
        return 3 * self.hidden * self.width
