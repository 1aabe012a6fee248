"""Policies by name, and from a module outside."""

import os
from dataclasses import replace

import numpy as np

from cluster.balance.foreign.policy import SECONDS, ForeignPolicy
from cluster.balance.planner import held_by_rank, repaired
from cluster.balance.policies.base import Policy, PolicyFailed, Situation
from cluster.balance.policies.eplb import EplbPolicy
from cluster.balance.policies.none import NoPolicy
from cluster.balance.policies.oracle import OraclePolicy
from cluster.balance.policies.tokenyard import TokenyardPolicy
from experts.errors import UserError
from experts.placement import Placement

POLICIES: dict[str, type[Policy]] = {p.name: p for p in (NoPolicy, EplbPolicy, TokenyardPolicy, OraclePolicy)}


def user_folder() -> str:
    """The current folder, where policies of the user's own lie; empty where it was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def load_policy(
    name: str, where: str = "--policy", folder: str | None = None, seconds: float = SECONDS
) -> Policy:  # fmt: skip
    """The policy of a name, or of `module:Class`, which gets a process of its own: close it in the end.

    folder: of the user, searched last (None: the current one)
    seconds: that a policy from outside may take to answer

    Raises UserError.
    """
    if ":" in name:
        return ForeignPolicy(name, user_folder() if folder is None else folder, seconds, where)
    if name not in POLICIES:
        raise UserError(f"policy {name!r}", f"one of {', '.join(POLICIES)}, or module:Class", where)
    return POLICIES[name]()


def ask(policy: Policy, situation: Situation) -> Placement:
    """The policy's placement, checked to be one of this model and shape. Raises PolicyFailed."""
    current, shape = situation.current, situation.shape
    try:
        placement = policy.plan(_read_only(situation))
    except PolicyFailed:
        raise
    except Exception as error:  # a bug of ours, or of the embedding program
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
    return _with_copies(placement, situation)


def _with_copies(placement: Placement, situation: Situation) -> Placement:
    """With the copies that the shape wants of every expert, which few policies know of."""
    least = situation.shape.copies_kept(placement.experts)
    if least == 1 or (held_by_rank(placement, placement.experts).sum(axis=1) >= least).all():
        return placement
    table = repaired(situation.history.mean(axis=0), situation.shape, placement).astype(np.int64)
    if bool((table == situation.current.slot_expert).all()):
        return situation.current
    return replace(placement, version=situation.current.version + 1, slot_expert=table)


def _read_only(situation: Situation) -> Situation:
    """With arrays that a policy can't write to: they are the trace that all policies are judged by."""
    history = situation.history.view()
    history.setflags(write=False)
    future = None if situation.future is None else situation.future.view()
    if future is not None:
        future.setflags(write=False)
    return replace(situation, history=history, future=future)
