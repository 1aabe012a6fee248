"""Rope settings of config.json, in both dialects, as a RopeSpec."""

import json
import math

from experts.errors import UserError
from router_svc.models.config_json import Config
from router_svc.models.spec import RopeSpec


def rope_spec(config: Config, dim: int, default_theta: float) -> RopeSpec:
    """rope_parameters (transformers 5) or rope_theta with rope_scaling (transformers 4), for heads of `dim`.

    "dynamic" with alpha is Hunyuan's static form: base * alpha^(D/(D-2)), independent of length; without alpha it
    depends on the length, so that cached keys would have to be turned again, and is refused.
    Raises UserError for a kind that is not built.
    """
    config.expect("partial_rotary_factor", 1.0, 1)
    theta = _theta(config, default_theta)
    section = _section(config)
    if section is None:
        return RopeSpec("default", dim, theta)
    section.expect("partial_rotary_factor", 1.0, 1)
    theta = _theta(section, theta)
    kind = section.raw("rope_type") or section.raw("type")
    alpha = section.number("alpha", 0.0)
    if kind is None and not section.keys() <= {"rope_theta"}:
        raise section.wrong("rope_type", None, "a kind of rope for all layers")
    if kind in ("dynamic", "ntk_alpha") and alpha > 0 and dim > 2:
        return RopeSpec("default", dim, theta, alpha=alpha)
    if kind is None or kind == "default":
        return RopeSpec("default", dim, theta)
    if kind == "linear":
        return RopeSpec("linear", dim, theta, factor=_factor(section))
    if kind == "yarn":
        return _yarn(config, section, dim, theta)
    raise section.wrong("rope_type", kind, "default, linear, yarn, or dynamic with alpha")


def _section(config: Config) -> Config | None:
    """The object that counts: rope_scaling where both are there, as transformers has it, which then takes no rope_theta
    from rope_parameters. Raises UserError where that would put its class's default in the place of the one written."""
    new, old = config.raw("rope_parameters"), config.raw("rope_scaling")
    if new and old and isinstance(new, dict) and isinstance(old, dict):
        if old.get("rope_theta") is None and config.raw("rope_theta") is None:
            kind = {"rope_type": old.get("rope_type") or old.get("type")}
            merged = {**new, **{key: value for key, value in old.items() if key != "type"}, **kind}
            expected = f'"rope_parameters": {json.dumps(merged)} alone'
            raise UserError("rope_scaling without a rope_theta beside rope_parameters", expected, config.where)
        return config.section("rope_scaling")
    return config.section("rope_scaling" if old else "rope_parameters")


def _theta(config: Config, default: float) -> float:
    theta = config.number("rope_theta", default)
    if theta <= 1:
        raise config.wrong("rope_theta", theta, "a number above 1")
    return theta


def _factor(section: Config, default: float | None = None) -> float:
    factor = section.number("factor", default)
    if factor < 1:
        raise section.wrong("factor", factor, "a number of at least 1")
    return factor


def _yarn(config: Config, section: Config, dim: int, theta: float) -> RopeSpec:
    longest = config.positive("max_position_embeddings")
    original = config.positive(
        "original_max_position_embeddings", section.positive("original_max_position_embeddings", longest)
    )
    factor = _factor(section, longest / original)
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
        original_max_position=original,
        beta_fast=section.number("beta_fast", 32.0) or 32.0,
        beta_slow=section.number("beta_slow", 1.0) or 1.0,
        truncate=section.flag("truncate", True),
        attention_factor=attention,
    )


def _magnitude(scale: float, mscale: float) -> float:
    return 1.0 if scale <= 1 else 0.1 * mscale * math.log(scale) + 1.0
