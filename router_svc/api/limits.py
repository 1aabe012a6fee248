"""Every bound that a call must keep, in one place; from what the caller gave to a resolved Sampling.

Each error names the field, what was found and what is allowed.
"""

import math
from dataclasses import dataclass
from hashlib import blake2b

from router_svc.api.calls import ApiError, SamplingFields, invalid
from router_svc.models.generation import GenerationDefaults
from router_svc.request import Code, Sampling

_INT64 = 2**63


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """max_model_len: prompt and output together, in tokens; the others bound single fields."""

    max_model_len: int
    vocab_size: int
    max_n: int = 64
    max_logprobs: int = 20
    max_stop_strings: int = 16
    max_stop_length: int = 1024  # characters
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
        raise invalid(
            param, f"{len(ids)} tokens", f"at most {limits.max_model_len - 1} (max_model_len {limits.max_model_len})"
        )
    for token in ids:
        if not 0 <= token < limits.vocab_size:
            raise invalid(param, f"token id {token}", f"ids from 0 to {limits.vocab_size - 1}")


def check_size(size: int, unit: str, limits: ServiceLimits, param: str) -> None:
    """Raise ApiError for a text or list of ids so long that reading it would only cost time."""
    if size > limits.max_text:
        raise invalid(param, f"{size} {unit}", f"at most {limits.max_text} (max_model_len {limits.max_model_len})")


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


def resolve_sampling(
    fields: SamplingFields,
    defaults: GenerationDefaults,
    limits: ServiceLimits,
    prompt_len: int,
    seed_text: str,
    prompt_logprobs: int | None = None,
) -> Sampling:
    """Check every field and fill the unset ones. seed_text: what an unset seed is derived from (key and request id)."""
    _check_fields(fields, limits)
    room = limits.max_model_len - prompt_len
    wanted = room if fields.max_tokens is None else fields.max_tokens
    if wanted > room:
        raise invalid(
            "max_tokens",
            f"{prompt_len} prompt tokens + {wanted}",
            f"at most {limits.max_model_len} together (max_model_len)",
        )
    seed = _derived_seed(seed_text) if fields.seed is None else fields.seed
    return Sampling(
        max_tokens=wanted,
        seed=seed,
        temperature=_or(fields.temperature, defaults.temperature),
        top_p=_or(fields.top_p, defaults.top_p),
        top_k=max(int(_or(fields.top_k, defaults.top_k)), 0),
        min_p=_or(fields.min_p, defaults.min_p),
        repetition_penalty=_or(fields.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=_or(fields.presence_penalty, 0.0),
        frequency_penalty=_or(fields.frequency_penalty, 0.0),
        logit_bias=fields.logit_bias,
        stop_token_ids=fields.stop_token_ids,
        eos_token_ids=defaults.eos_token_ids,
        ignore_eos=fields.ignore_eos,
        logprobs=fields.logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _derived_seed(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _check_fields(f: SamplingFields, limits: ServiceLimits) -> None:
    _check_number("temperature", f.temperature, 0.0, 100.0)
    _check_number("top_p", f.top_p, 0.0, 1.0, open_low=True)
    _check_number("min_p", f.min_p, 0.0, 1.0)
    _check_number("repetition_penalty", f.repetition_penalty, 0.0, 10.0, open_low=True)
    _check_number("presence_penalty", f.presence_penalty, -2.0, 2.0)
    _check_number("frequency_penalty", f.frequency_penalty, -2.0, 2.0)
    _check_number("max_tokens", f.max_tokens, 1, 2**31 - 1)
    _check_number("top_k", f.top_k, -1, 2**31 - 1)
    _check_number("n", f.n, 1, limits.max_n)
    _check_number("logprobs", f.logprobs, 0, limits.max_logprobs)
    if f.seed is not None and not -_INT64 <= f.seed < _INT64:
        raise invalid("seed", str(f.seed), "a 64-bit whole number")
    if len(f.stop) > limits.max_stop_strings:
        raise invalid("stop", f"{len(f.stop)} strings", f"at most {limits.max_stop_strings}")
    for stop in f.stop:
        if not 0 < len(stop) <= limits.max_stop_length:
            raise invalid("stop", f"a string of {len(stop)} characters", f"1 to {limits.max_stop_length}")
    _check_ids("stop_token_ids", f.stop_token_ids, limits)
    _check_ids("logit_bias", tuple(token for token, _ in f.logit_bias), limits)
    for token, bias in f.logit_bias:
        _check_number(f"logit_bias[{token}]", bias, -100.0, 100.0)


def _check_number(name: str, value: float | None, low: float, high: float, open_low: bool = False) -> None:
    if value is None:
        return
    if math.isnan(value) or value > high or value < low or (open_low and value == low):
        least, most = _shown(low), _shown(high)
        bounds = f"above {least} and at most {most}" if open_low else f"from {least} to {most}"
        raise invalid(name, _shown(value), f"a number {bounds}")


def _shown(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_ids(name: str, ids: tuple[int, ...], limits: ServiceLimits) -> None:
    for token in ids:
        if not 0 <= token < limits.vocab_size:
            raise invalid(name, f"token id {token}", f"ids from 0 to {limits.vocab_size - 1}")


def retry_hint(state: str) -> float | None:
    """Seconds after which a refused call may succeed, None in a state that does not pass by itself."""
    return 5.0 if state in ("starting", "recovering", "stopping") else None


def not_ready(state: str, reason: str) -> ApiError:
    """The refusal while no rank can serve."""
    told = f"the server is {state}" + (f": {reason}" if reason else "")
    return ApiError(Code.UNAVAILABLE, told, retry_after=retry_hint(state))
