"""Rope settings of config.json, in both dialects, as a RopeSpec."""

import math

from router_svc.models.config_json import Config
from router_svc.models.spec import RopeSpec


def rope_spec(config: Config, dim: int) -> RopeSpec:
    """rope_parameters (transformers 5) or rope_theta with rope_scaling (transformers 4), for heads of `dim`.

    "dynamic" with alpha is Hunyuan's static form: base * alpha^(D/(D-2)), independent of length.
    Raises UserError for a kind that is not built.
    """
    section = config.section("rope_parameters") or config.section("rope_scaling")
    theta = config.number("rope_theta", 10000.0)
    if section is None:
        return RopeSpec("default", dim, theta)
    theta = section.number("rope_theta", theta)
    kind = section.raw("rope_type") or section.raw("type") or "default"
    alpha = section.number("alpha", 0.0)
    if kind in ("dynamic", "ntk_alpha") and alpha:
        return RopeSpec("default", dim, theta * alpha ** (dim / (dim - 2)))
    if kind == "default":
        return RopeSpec("default", dim, theta)
    if kind == "linear":
        return RopeSpec("linear", dim, theta, factor=section.number("factor"))
    if kind == "yarn":
        return _yarn(config, section, dim, theta)
    raise section.wrong("rope_type", kind, "default, linear, yarn, or dynamic with alpha")


def _yarn(config: Config, section: Config, dim: int, theta: float) -> RopeSpec:
    factor = section.number("factor")
    mscale, all_dim = section.number("mscale", 0.0), section.number("mscale_all_dim", 0.0)
    if section.raw("attention_factor") is not None:
        attention = section.number("attention_factor")
    elif mscale and all_dim:
        attention = _magnitude(factor, mscale) / _magnitude(factor, all_dim)
    else:
        attention = _magnitude(factor, 1.0)
    return RopeSpec(
        "yarn",
        dim,
        theta,
        factor=factor,
        original_max_position=section.positive(
            "original_max_position_embeddings", config.positive("max_position_embeddings")
        ),
        beta_fast=section.number("beta_fast", 32.0),
        beta_slow=section.number("beta_slow", 1.0),
        truncate=section.flag("truncate", True),
        attention_factor=attention,
    )


def _magnitude(scale: float, mscale: float) -> float:
    return 1.0 if scale <= 1 else 0.1 * mscale * math.log(scale) + 1.0
