"""Policies by name, and from a module outside."""

import importlib
import os
import sys

from cluster.balance.policies.base import Policy, Situation
from cluster.balance.policies.eplb import EplbPolicy
from cluster.balance.policies.none import NoPolicy
from cluster.balance.policies.oracle import OraclePolicy
from cluster.balance.policies.tokenyard import TokenyardPolicy
from experts.errors import UserError
from experts.placement import Placement

POLICIES: dict[str, type[Policy]] = {p.name: p for p in (NoPolicy, EplbPolicy, TokenyardPolicy, OraclePolicy)}


class PolicyFailed(UserError):
    """A policy raised, or returned what is not a placement for this model; the placement in use stays."""


def load_policy(name: str, where: str = "--policy") -> Policy:
    """The policy of a name, or of `module:Class` (looked for in the working directory too). Raises UserError."""
    if ":" not in name:
        if name not in POLICIES:
            raise UserError(f"policy {name!r}", f"one of {', '.join(POLICIES)}, or module:Class", where)
        return POLICIES[name]()
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise UserError(f"policy {name!r} ({error})", "an importable module:Class", where) from None
    if not (isinstance(kind, type) and issubclass(kind, Policy)):
        raise UserError(f"{name!r}, not a policy", "a subclass of cluster.balance.policies.base.Policy", where)
    try:
        policy = kind()
    except Exception as error:  # a stranger's code may raise anything
        raise UserError(
            f"policy {name!r} raised {type(error).__name__}: {error}", "a class without arguments", where
        ) from error
    policy.name = policy.name or name
    return policy


def ask(policy: Policy, situation: Situation) -> Placement:
    """The policy's placement, checked to be one of this model and shape. Raises PolicyFailed."""
    current, shape = situation.current, situation.shape
    try:
        placement = policy.plan(situation)
    except Exception as error:  # a stranger's code may raise anything
        raise PolicyFailed(
            f"policy {policy.name!r} raised {type(error).__name__}: {error}", "a placement", "plan"
        ) from error
    if not isinstance(placement, Placement):
        raise PolicyFailed(f"{type(placement).__name__} from policy {policy.name!r}", "a Placement", "plan")
    wanted = (current.layers, current.experts, shape.ranks, shape.slots_per_rank)
    got = (placement.layers, placement.experts, placement.ranks, placement.slots_per_rank)
    if got != wanted:
        raise PolicyFailed(
            f"(layers, experts, ranks, slots) {got} from policy {policy.name!r}", f"{wanted}", "plan"
        )  # fmt: skip
    away = sorted(placement.ranks_used & shape.dead)
    if away:
        raise PolicyFailed(
            f"experts on rank {away[0]} from policy {policy.name!r}", "none on a rank that is away", "plan"
        )
    return placement
