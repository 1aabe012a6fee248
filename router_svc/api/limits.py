"""Every bound that a call must keep, in one place; from what the caller gave to a resolved Sampling.

Each error names the field, what was found and what is allowed.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import Any

from router_svc.api.calls import ApiError, context_exceeded, invalid
from router_svc.models.generation import GenerationDefaults
from router_svc.request import Code
from router_svc.sampling import PARAMETERS, Parameter, Sampling


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """max_model_len: prompt and output together, in tokens; the others bound fields of a call."""

    max_model_len: int
    vocab_size: int
    max_batch: int = 64  # prompts of one call
    max_request_id: int = 256  # characters
    max_timeout: float = 86400.0  # s

    @property
    def max_text(self) -> int:
        """Characters of a text, and ids of a list, that are looked at: far more than any prompt that fits has."""
        return max(65536, 64 * self.max_model_len)


def check_prompt(ids: list[int] | tuple[int, ...], limits: ServiceLimits, param: str) -> None:
    """Raise ApiError unless the prompt has tokens, all in the vocabulary, and leaves room for one more."""
    if not ids:
        raise invalid(param, "an empty prompt", "at least one token")
    if len(ids) >= limits.max_model_len:
        most = f"at most {limits.max_model_len - 1} and one to generate"
        raise context_exceeded(param, f"{len(ids)} tokens", most, limits.max_model_len)
    for token in ids:
        if not 0 <= token < limits.vocab_size:
            raise invalid(param, f"token id {token}", f"ids from 0 to {limits.vocab_size - 1}")


def check_size(size: int, unit: str, limits: ServiceLimits, param: str) -> None:
    """Raise ApiError for a text or list of ids so long that reading it would only cost time."""
    if size > limits.max_text:
        raise context_exceeded(param, f"{size} {unit}", f"at most {limits.max_text}", limits.max_model_len)


def check_call(request_id: str, priority: int, timeout: float | None, limits: ServiceLimits) -> None:
    """Raise ApiError unless the fields around the sampling are in bounds."""
    if len(request_id) > limits.max_request_id:
        raise invalid("request_id", f"{len(request_id)} characters", f"at most {limits.max_request_id}")
    if not request_id.isprintable():  # it stands in log lines and events
        raise invalid("request_id", repr(request_id), "printable characters")
    if not -(2**31) <= priority < 2**31:
        raise invalid("priority", str(priority), "a 32-bit whole number")
    if timeout is not None and not 0 < timeout <= limits.max_timeout:
        raise invalid("timeout", f"{timeout:g}", f"above 0 and at most {limits.max_timeout:g} seconds")


def check_sampling(given: Mapping[str, Any], limits: ServiceLimits, names: Mapping[str, str]) -> None:
    """Raise ApiError, with the caller's name for the field, unless every parameter is in its range."""
    for parameter in PARAMETERS:
        value: Any = given.get(parameter.name)
        if value is not None:
            _CHECKS[parameter.kind](parameter, names.get(parameter.name, parameter.name), value, limits)


def resolve_sampling(
    given: Mapping[str, Any],
    defaults: GenerationDefaults,
    limits: ServiceLimits,
    prompt_len: int,
    seed_text: str,
    names: Mapping[str, str],
    **made: Any,
) -> Sampling:
    """Fill what is unset in checked parameters.

    seed_text: what an unset seed is derived from (key and request id)
    made: the fields of Sampling that are no parameters
    """
    room = limits.max_model_len - prompt_len
    values = {p.name: p.default for p in PARAMETERS} | {"max_tokens": room}
    values |= {f.name: getattr(defaults, f.name) for f in fields(defaults)}
    values |= {name: _frozen(value) for name, value in given.items() if value is not None}
    for name in ("max_tokens", "min_tokens"):
        if values[name] > room:
            found = f"{values[name]} beside {prompt_len} prompt tokens"
            raise context_exceeded(names.get(name, name), found, f"at most {room}", limits.max_model_len)
    if values["min_tokens"] > values["max_tokens"]:
        most = f"at most {names.get('max_tokens', 'max_tokens')} ({values['max_tokens']})"
        raise invalid(names.get("min_tokens", "min_tokens"), str(values["min_tokens"]), most)
    if values["seed"] is None:
        values["seed"] = _derived_seed(seed_text)
    values["top_k"] = max(int(values["top_k"]), 0)
    return Sampling(**values, **made)


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple(value.items())
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _derived_seed(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _check_number(p: Parameter, name: str, value: float, limits: ServiceLimits) -> None:
    assert p.low is not None
    assert p.high is not None
    if math.isnan(value) or value > p.high or value < p.low or (p.open_low and value == p.low):
        least, most = _shown(p.low), _shown(p.high)
        bounds = f"above {least} and at most {most}" if p.open_low else f"from {least} to {most}"
        raise invalid(name, _shown(value), f"a number {bounds}")


def _check_strings(p: Parameter, name: str, value: Sequence[str], limits: ServiceLimits) -> None:
    assert p.most is not None
    assert p.longest is not None
    if len(value) > p.most:
        raise invalid(name, f"{len(value)} strings", f"at most {p.most}")
    for text in value:
        if not 0 < len(text) <= p.longest:
            raise invalid(name, f"a string of {len(text)} characters", f"1 to {p.longest}")


def _check_ids(p: Parameter, name: str, value: Collection[int], limits: ServiceLimits) -> None:
    if len(value) < p.least:
        raise invalid(name, f"{len(value)} ids", f"at least {p.least}")
    for token in value:
        if not 0 <= token < limits.vocab_size:
            raise invalid(name, f"token id {token}", f"ids from 0 to {limits.vocab_size - 1}")


def _check_biases(p: Parameter, name: str, value: Mapping[int, float], limits: ServiceLimits) -> None:
    _check_ids(p, name, value, limits)
    for token, bias in value.items():
        _check_number(p, f"{name}[{token}]", bias, limits)


def _shown(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


_CHECKS: dict[str, Callable[[Parameter, str, Any, ServiceLimits], None]] = {
    "int": _check_number,
    "float": _check_number,
    "bool": lambda p, name, value, limits: None,
    "strings": _check_strings,
    "ids": _check_ids,
    "biases": _check_biases,
}


SERVING = ("ready", "recovering")  # states in which requests are taken; in the second their tokens wait


def retry_hint(state: str) -> float | None:
    """Seconds after which a refused call may succeed, None in a state that does not pass by itself."""
    return 5.0 if state in ("starting", "stopping") else None


def not_ready(state: str, reason: str) -> ApiError:
    """The refusal while no rank can serve."""
    text = f"the server is {state}" + (f": {reason}" if reason else "")
    return ApiError(Code.UNAVAILABLE, text, retry_after=retry_hint(state))
