"""Sampling parameters, each declared once: name, type, default, range and help.

From this table come the fields of HTTP bodies, the copy out of gRPC messages, the range check, the resolved values, the
client's keyword arguments and the flags of `tokenyard generate` and `chat`. The .proto is written by hand; a test
compares. Standard library only: the command line and the client read this too.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_type_hints

Kind = Literal["int", "float", "bool", "strings", "ids", "biases"]
_KINDS: dict[Any, Kind] = {
    int: "int",
    int | None: "int",
    float: "float",
    bool: "bool",
    tuple[str, ...]: "strings",
    tuple[int, ...]: "ids",
    tuple[tuple[int, float], ...]: "biases",
}
_INT32, _INT64 = 2**31, 2**63


def parameter(
    help_text: str,
    default: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    open_low: bool = False,
    least: int = 0,
    most: int | None = None,
    longest: int | None = None,
    flag: bool = True,
) -> Any:
    """A field that callers may set.

    default: None where the service makes one, or where None is a value
    low, high: the range of a number, or of each bias
    open_low: without its lower end
    least, most: how many texts or ids
    longest: of how many characters
    flag: the command line has it
    """
    bounds = {"low": low, "high": high, "open_low": open_low, "least": least, "most": most, "longest": longest}
    return field(default=default, metadata={"parameter": {"help": help_text, **bounds, "flag": flag}})


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn, with every parameter resolved: what the caller gave, else the model's default, else ours.

    Made by the service, not by callers:
    eos_token_ids: the model's own ends
    prompt_logprobs: as logprobs, for the prompt's tokens
    bad_word_ids: what spells each bad word
    """

    max_tokens: int = parameter(
        "At most so many new tokens. Default: what the context has room for.", None, 1, _INT32 - 1
    )
    temperature: float = parameter("Spread of the draw; 0 = greedy.", 1.0, 0.0, 100.0)
    top_p: float = parameter("Draw from the likeliest tokens of this mass.", 1.0, 0.0, 1.0, open_low=True)
    top_k: int = parameter("Draw from so many likeliest tokens; 0 or -1 = all.", 0, -1, _INT32 - 1)
    min_p: float = parameter("Draw from tokens at least so likely, as a part of the likeliest.", 0.0, 0.0, 1.0)
    seed: int = parameter(
        "The same seed draws the same tokens. Default: a hash of key and id.", None, -_INT64, _INT64 - 1
    )
    stop: tuple[str, ...] = parameter("Text that ends the answer, and is cut from it.", (), most=64, longest=1024)
    stop_token_ids: tuple[int, ...] = parameter("Tokens that end the answer.", ())
    repetition_penalty: float = parameter("Above 1: tokens seen before are less likely.", 1.0, 0.0, 10.0, open_low=True)
    presence_penalty: float = parameter("Taken from each token generated before.", 0.0, -2.0, 2.0)
    frequency_penalty: float = parameter("Taken from a token as often as it was generated.", 0.0, -2.0, 2.0)
    ignore_eos: bool = parameter("The model's own end does not end the answer.", False)
    logprobs: int | None = parameter(
        "Log-probabilities of the tokens and of so many likeliest in their places.", None, 0, 20, flag=False
    )
    n: int = parameter("Answers to give.", 1, 1, 64, flag=False)
    logit_bias: tuple[tuple[int, float], ...] = parameter("Added to tokens' logits.", (), -100.0, 100.0, flag=False)
    include_stop_str_in_output: bool = parameter("Text or token that ends the answer is part of it.", False)
    min_tokens: int = parameter("Nothing ends the answer before so many tokens.", 0, 0, _INT32 - 1)
    bad_words: tuple[str, ...] = parameter("Text that is not generated.", (), most=64, longest=1024)
    skip_special_tokens: bool = parameter("Special tokens have no text.", True)
    truncate_prompt_tokens: int | None = parameter(
        "Only so many tokens of the prompt's end; -1 = as many as there is room for.", None, -1, _INT32 - 1
    )
    allowed_token_ids: tuple[int, ...] = parameter("Only these tokens.", (), least=1)
    eos_token_ids: tuple[int, ...] = ()
    prompt_logprobs: int | None = None
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    # Asked of every row of every step, so made once: whether logits change before the draw, and what ends the answer.
    shapes: bool = field(init=False, compare=False)
    end_ids: tuple[int, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        penalised = self.repetition_penalty != 1.0 or self.presence_penalty or self.frequency_penalty
        shapes = penalised or self.logit_bias or self.min_tokens or self.bad_word_ids or self.allowed_token_ids
        object.__setattr__(self, "shapes", bool(shapes))
        own = () if self.ignore_eos else self.eos_token_ids
        object.__setattr__(self, "end_ids", (*self.stop_token_ids, *own))


@dataclass(frozen=True, slots=True)
class Parameter:
    """A row of the table; see `parameter`."""

    name: str
    kind: Kind
    default: Any
    help: str
    low: float | None
    high: float | None
    open_low: bool
    least: int
    most: int | None
    longest: int | None
    flag: bool


def _table() -> tuple[Parameter, ...]:
    hints = get_type_hints(Sampling)
    return tuple(
        Parameter(f.name, _KINDS[hints[f.name]], f.default, **f.metadata["parameter"])
        for f in fields(Sampling)
        if "parameter" in f.metadata
    )


PARAMETERS = _table()
