"""The demo model as a trainable network: Hunyuan's architecture, all experts of a layer in three tensors.

Training drops tokens beyond an expert's capacity; evaluation (capacity None) never does, as serving never does.
Shape letters: B rows, N positions, H hidden, A heads, K kv heads, D head_dim, E experts, I expert width, C capacity.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; the defaults are the shipped model's."""

    vocab: int = 512
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    experts: int = 64
    top_k: int = 8
    width: int = 48
    positions: int = 2048
    rope_theta: float = 10000.0
    rope_alpha: float = 1000.0


def config_json(shape: Shape) -> dict[str, object]:
    """config.json in the dialect of the published Hunyuan-A13B."""
    s = shape
    return {
        "architectures": ["HunYuanMoEV1ForCausalLM"],
        "model_type": "hunyuan_v1_moe",
        "vocab_size": s.vocab,
        "hidden_size": s.hidden,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "attention_head_dim": s.head_dim,
        "head_dim": s.head_dim,
        "intermediate_size": s.width,
        "moe_intermediate_size": [s.width] * s.layers,
        "num_experts": s.experts,
        "moe_topk": [s.top_k] * s.layers,
        "num_shared_expert": [1] * s.layers,
        "use_mixed_mlp_moe": True,
        "use_qk_norm": True,
        "use_cla": False,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": 1e-5,
        "rope_theta": s.rope_theta,
        "rope_scaling": {
            "type": "dynamic", "alpha": s.rope_alpha, "factor": 1.0,
            "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
        },
        "max_position_embeddings": s.positions,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 3,
        "pad_token_id": 4,
        "torch_dtype": "bfloat16",
    }  # fmt: skip


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """RMSNorm over the last dimension, eps 1e-5."""
    return functional.rms_norm(x, weight.shape, weight, 1e-5)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate-half rope on x [B, heads, N, D]."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Layer(nn.Module):
    """One block. Names follow the checkpoint's where one tensor is one tensor."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        s = self.shape = shape
        self.input_norm = nn.Parameter(torch.ones(s.hidden))
        self.post_norm = nn.Parameter(torch.ones(s.hidden))
        self.q_norm = nn.Parameter(torch.ones(s.head_dim))
        self.k_norm = nn.Parameter(torch.ones(s.head_dim))
        self.qkv = nn.Parameter(torch.randn((s.heads + 2 * s.kv_heads) * s.head_dim, s.hidden) * s.hidden**-0.5)
        self.out = nn.Parameter(torch.randn(s.hidden, s.heads * s.head_dim) * 0.3 * s.hidden**-0.5)
        self.router = nn.Parameter(torch.randn(s.experts, s.hidden) * s.hidden**-0.5)
        self.shared_gate_up = nn.Parameter(torch.randn(2 * s.width, s.hidden) * s.hidden**-0.5)
        self.shared_down = nn.Parameter(torch.randn(s.hidden, s.width) * 0.5 * s.width**-0.5)
        self.gate_up = nn.Parameter(torch.randn(s.experts, 2 * s.width, s.hidden) * s.hidden**-0.5)
        self.down = nn.Parameter(torch.randn(s.experts, s.hidden, s.width) * 0.5 * s.width**-0.5)

    def attend(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        s, (rows, length, _) = self.shape, x.shape
        heads = functional.linear(x, self.qkv).view(rows, length, -1, s.head_dim).transpose(1, 2)
        q, k, v = heads.split([s.heads, s.kv_heads, s.kv_heads], dim=1)
        q, k = norm(rotate(q, cos, sin), self.q_norm), norm(rotate(k, cos, sin), self.k_norm)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return functional.linear(mixed.transpose(1, 2).reshape(rows, length, -1), self.out)

    def mix(self, x: torch.Tensor, capacity: float | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [T, H] -> (its experts' sum [T, H], balance loss, chosen experts [T, K])."""
        s = self.shape
        probs = functional.linear(x.float(), self.router.float()).softmax(-1)
        weights, ids = probs.topk(s.top_k, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        counts = torch.bincount(ids.flatten(), minlength=s.experts)
        share = counts.float() / ids.numel()
        balance = s.experts * (share * probs.mean(0)).sum()
        room = int(counts.max()) if capacity is None else int(capacity * ids.numel() / s.experts) + 1
        order = ids.flatten().argsort(stable=True)
        expert = ids.flatten()[order]
        place = torch.arange(len(order)) - (counts.cumsum(0) - counts)[expert]
        kept = place < room
        order, cell = order[kept], (expert * room + place)[kept]
        token = order // s.top_k
        narrow = x.dtype if capacity is None else torch.bfloat16  # products in bfloat16 halve a training step
        spread = x.to(narrow).index_select(0, token)
        batch = spread.new_zeros(s.experts * room, s.hidden).index_copy(0, cell, spread).view(s.experts, room, s.hidden)
        gate, up = torch.bmm(batch, self.gate_up.transpose(1, 2).to(narrow)).chunk(2, dim=-1)
        out = torch.bmm(functional.silu(gate) * up, self.down.transpose(1, 2).to(narrow)).view(-1, s.hidden)
        scaled = out.index_select(0, cell).to(x.dtype) * weights.flatten()[order][:, None]
        return torch.zeros_like(x).index_add(0, token, scaled), balance, ids

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor, capacity: float | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = x + self.attend(norm(x, self.input_norm), cos, sin, mask)
        y = norm(x, self.post_norm)
        routed, balance, ids = self.mix(y.flatten(0, 1), capacity)
        gate, up = functional.linear(y, self.shared_gate_up).chunk(2, dim=-1)
        shared = functional.linear(functional.silu(gate) * up, self.shared_down)
        return x + shared + routed.view_as(x), balance, ids


class Network(nn.Module):
    """The whole model, with its embedding as lm head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Parameter(torch.randn(shape.vocab, shape.hidden) * 0.05)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.final_norm = nn.Parameter(torch.ones(shape.hidden))
        base = shape.rope_theta * shape.rope_alpha ** (shape.head_dim / (shape.head_dim - 2))
        self.frequencies = base ** -(torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)

    def forward(
        self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, capacity: float | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """ids, positions [B, N]; mask [B, 1, N, N] bool, True = may look.

        Returns (final states [B, N, H], balance loss, chosen ids per layer).
        """
        turns = positions.float()[:, None, :, None] * self.frequencies
        turns = torch.cat((turns, turns), dim=-1)
        x = self.embed[ids]
        cos, sin = turns.cos().to(x.dtype), turns.sin().to(x.dtype)
        losses, chosen = [], []
        for layer in self.layers:
            x, balance, experts = layer(x, cos, sin, mask, capacity)
            losses.append(balance)
            chosen.append(experts)
        return norm(x, self.final_norm), torch.stack(losses).mean(), chosen

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """[..., V] of final states [..., H]."""
        return functional.linear(states, self.embed)


def named(network: Network) -> dict[str, torch.Tensor]:
    """Views of all weights under their names on disk."""
    s = network.shape
    tensors = {"model.embed_tokens.weight": network.embed.data, "model.norm.weight": network.final_norm.data}
    for i, layer in enumerate(network.layers):
        assert isinstance(layer, Layer), "a network is made of layers"
        block = f"model.layers.{i}"
        rows = [s.heads * s.head_dim, s.kv_heads * s.head_dim, s.kv_heads * s.head_dim]
        for name, part in zip("qkv", layer.qkv.data.split(rows), strict=True):
            tensors[f"{block}.self_attn.{name}_proj.weight"] = part
        tensors |= {
            f"{block}.self_attn.o_proj.weight": layer.out.data,
            f"{block}.self_attn.query_layernorm.weight": layer.q_norm.data,
            f"{block}.self_attn.key_layernorm.weight": layer.k_norm.data,
            f"{block}.input_layernorm.weight": layer.input_norm.data,
            f"{block}.post_attention_layernorm.weight": layer.post_norm.data,
            f"{block}.mlp.gate.wg.weight": layer.router.data,
        }
        mlps = {"shared_mlp": (layer.shared_gate_up.data, layer.shared_down.data)}
        mlps |= {f"experts.{e}": (layer.gate_up.data[e], layer.down.data[e]) for e in range(s.experts)}
        for name, (gate_up, down) in mlps.items():
            gate, up = gate_up.chunk(2)
            tensors[f"{block}.mlp.{name}.gate_proj.weight"] = gate
            tensors[f"{block}.mlp.{name}.up_proj.weight"] = up
            tensors[f"{block}.mlp.{name}.down_proj.weight"] = down
    return tensors


def export(network: Network) -> dict[str, torch.Tensor]:
    """bfloat16 copies under their names on disk."""
    return {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in named(network).items()}


def restore(network: Network, tensors: dict[str, torch.Tensor]) -> None:
    """Fill a network from what `export` wrote."""
    for name, view in named(network).items():
        view.copy_(tensors[name])
