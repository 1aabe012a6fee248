"""A request's life as plain data: what an ingress submits and what an attention rank sends back.

Everything here is frozen and made of built-in types, so that it crosses process borders as msgpack.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from router_svc.sampling import Sampling


class Code(StrEnum):
    """Why a request ended without an answer; names are gRPC's."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    UNAVAILABLE = "UNAVAILABLE"
    ABORTED = "ABORTED"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request as an attention rank takes it; its choices share the prompt.

    attempt: tells submissions with the same request_id apart, be they retries or resubmissions
    deadline: in seconds from arrival, None = none
    priority: lower first
    prompt_ids: at least one id, all inside the vocabulary (checked by the ingress)
    request_id: the caller's, with its key's hash where there are keys, so that callers can't meet each other's
    body: hash of what the call asks for, which tells whether a call with a known id is the same call
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    priority: int = 0
    deadline: float | None = None
    attempt: int = 0
    body: str = ""

    @property
    def n(self) -> int:
        """How many choices."""
        return self.sampling.n


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability (natural log) of one token and of the likeliest ones at its position."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds, measured in the attention rank from the request's arrival there."""

    queued: float = 0.0
    first_token: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """New tokens of one choice, of one step.

    index: position of the first of them among the choice's tokens
    finish_reason: None, "stop" (eos, stop id) or "length"
    stop_token_id: the id that ended it (also the last of token_ids)

    The last event of a choice carries usage: generated tokens of the choice (completion_tokens), and cached_tokens of
    the prompt that were reused.
    """

    request_id: str
    attempt: int
    choice: int
    index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    finish_reason: str | None = None
    completion_tokens: int = 0
    cached_tokens: int = 0
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True, slots=True)
class FailedEvent:
    """The whole request ended without (the rest of) an answer. retry_after in seconds, where it makes sense."""

    request_id: str
    attempt: int
    code: Code
    message: str
    retry_after: float | None = None


Event = TokenEvent | FailedEvent


def taken_over(request_id: str, attempt: int) -> FailedEvent:
    """The end of a request whose id and body came again: the newer call gets the answer."""
    text = "the same call came again under this request_id, and the newer one gets the answer"
    return FailedEvent(request_id, attempt, Code.ABORTED, text)


def refused_twin(request_id: str, attempt: int) -> FailedEvent:
    """The refusal of a request whose id another one has that runs."""
    text = "request_id: found one that is running with another body, expected the same call again or a new id"
    return FailedEvent(request_id, attempt, Code.INVALID_ARGUMENT, text)


@dataclass(frozen=True, slots=True)
class Cancel:
    """The ingress wants no more of a request (client gone, deadline, or a stop string found).

    choice: None = all choices. Work ends within a step and the KV blocks are freed; no event follows.
    """

    request_id: str
    choice: int | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """Flow control: stop (held) or resume scheduling a request whose reader is slow; its tokens are kept."""

    request_id: str
    held: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """An ingress has given a request to another rank: one with its id here ends, or the new one is refused."""

    request_id: str
    attempt: int
    body: str


Message = EngineRequest | Cancel | Hold
