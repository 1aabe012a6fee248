"""Rope, norm, gate, linear and MLP, each against its plain formula or transformers' own."""

import pytest
import torch
import transformers
from torch.nn import functional
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from router_svc.models.config_json import Config
from router_svc.models.parts.gate import softmax_top_k
from router_svc.models.parts.linear import Linear
from router_svc.models.parts.mlp import SwiGLU
from router_svc.models.parts.norm import rms_norm
from router_svc.models.parts.rope import Rope, inverse_frequencies, rotate
from router_svc.models.rope_config import rope_spec
from router_svc.models.spec import RopeSpec

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
YARN = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_type": "linear", "factor": 4.0},
        YARN,
        {**YARN, "mscale": 0.707, "mscale_all_dim": 1.0},
        {**YARN, "mscale": 1.0, "mscale_all_dim": 0.0},
        {**YARN, "attention_factor": 0.9, "beta_fast": 16, "beta_slow": 2},
        {**YARN, "factor": 32.0, "truncate": False},
        {**YARN, "original_max_position_embeddings": None},
        {**YARN, "factor": 1.0},
    ],
    ids=str,
)
def test_stretched_ropes_equal_transformers(fields: dict[str, object]) -> None:
    theirs = {key: value for key, value in {**fields, "rope_theta": 150000.0}.items() if value is not None}
    config = transformers.Qwen3MoeConfig(head_dim=64, max_position_embeddings=8192, rope_parameters=dict(theirs))
    wanted, factor = ROPE_INIT_FUNCTIONS[str(fields["rope_type"])](config, "cpu")
    values = {"max_position_embeddings": 8192, "rope_theta": 150000.0, "rope_scaling": fields}
    spec = rope_spec(Config(values, "config.json"), 64, 10000.0)
    assert torch.allclose(inverse_frequencies(spec), wanted, rtol=1e-6, atol=0)
    assert spec.attention_factor == pytest.approx(factor)


def test_hunyuans_alpha_stretches_the_base() -> None:
    plain = RopeSpec("default", 128, 1e4 * 1000 ** (128 / 126))
    assert pytest.approx(1.1158e7, rel=1e-4) == 1e4 * 1000 ** (128 / 126)
    assert torch.equal(inverse_frequencies(RopeSpec("default", 128, 1e4, alpha=1000.0)), inverse_frequencies(plain))


def test_rotation_pairs_halves_and_depends_on_distance_only() -> None:
    rope = Rope(RopeSpec("default", 8, 100.0), "cpu")
    x = torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(0))
    for position in (0, 1, 77):
        turned = rotate(x, *rope.angles(torch.tensor([position]), torch.float32))
        pairs = torch.view_as_complex(torch.stack((x[..., :4], x[..., 4:]), -1))
        wanted = pairs * torch.exp(1j * position * inverse_frequencies(RopeSpec("default", 8, 100.0)))
        assert torch.allclose(turned, torch.cat((wanted.real, wanted.imag), -1), atol=1e-5)


@BOTH
@pytest.mark.parametrize("shape", [(1, 32), (3, 5, 16), (128, 32), (129, 32), (200, 5, 16)], ids=str)
def test_rms_norm_casts_back_before_the_weight(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype)
    weight = torch.randn(shape[1:], generator=generator).to(dtype)
    wide = x.double()
    wanted = (wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()).to(dtype) * weight
    got = rms_norm(x, weight, 1e-5)
    assert got.dtype == dtype
    # One rounding step of bfloat16, or float32's own error.
    assert torch.allclose(got.float(), wanted.float(), rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_gate_is_softmax_over_all_then_the_likeliest(top_k: int, renormalise: bool) -> None:
    generator = torch.Generator().manual_seed(top_k)
    x, weight = torch.randn(50, 16, generator=generator), torch.randn(8, 16, generator=generator)
    route = softmax_top_k(x, weight, top_k, renormalise)
    assert (route.ids.dtype, route.weights.dtype) == (torch.int32, torch.float32)
    probabilities = (x @ weight.T).softmax(-1)
    wanted, ids = probabilities.topk(top_k)
    assert torch.equal(route.ids.long(), ids)
    if renormalise:
        wanted = wanted / wanted.sum(-1, keepdim=True)
    assert torch.allclose(route.weights, wanted, atol=1e-6)


def test_gate_multiplies_in_the_weights_dtype() -> None:
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    exact = (x.float() @ weight.T).topk(2).values.softmax(-1)
    assert torch.allclose(softmax_top_k(x, weight, 2, True).weights, exact, atol=1e-5)
    rounded = functional.linear(x, weight.bfloat16()).float().topk(2).values.softmax(-1)
    assert torch.equal(softmax_top_k(x, weight.bfloat16(), 2, True).weights, rounded)


@BOTH
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 31, 48, 49, 130])
@pytest.mark.parametrize("onednn", [False, None])
def test_linear_in_every_form(rows: int, biased: bool, keep: bool, dtype: torch.dtype, onednn: bool | None) -> None:
    """onednn False: the forms of a CPU whose oneDNN does not multiply bfloat16."""
    generator = torch.Generator().manual_seed(rows)
    weight, x = torch.randn(40, 24, generator=generator).to(dtype), torch.randn(rows, 24, generator=generator).to(dtype)
    bias = torch.randn(40, generator=generator).to(dtype) if biased else None
    got = Linear(weight, bias, keep, onednn)(x)
    wanted = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert got.is_contiguous()
    assert got.dtype == dtype
    assert torch.allclose(got.double(), wanted, rtol=1e-2, atol=0.1 if dtype == torch.bfloat16 else 1e-4)


@BOTH
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 60])
def test_swiglu(rows: int, gated: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, both, down, gate = (
        (torch.randn(shape, generator=generator) / 4).to(dtype) for shape in ((rows, 24), (64, 24), (24, 32), (1, 24))
    )
    wide = x.double() @ both.double().T
    wanted = (functional.silu(wide[:, :32]) * wide[:, 32:]) @ down.double().T
    if gated:
        wanted = wanted * torch.sigmoid(x.double() @ gate.double().T)
    got = SwiGLU(both, down, gate if gated else None)(x)
    assert torch.allclose(got.double(), wanted, rtol=1e-2, atol=0.05 if dtype == torch.bfloat16 else 1e-5)
