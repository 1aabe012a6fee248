"""One choice of one request on its way through the engine."""

from dataclasses import dataclass, field

from router_svc.engine.prefix import PrefixChain
from router_svc.request import EngineRequest, TokenLogprob


@dataclass(eq=False, slots=True)
class Sequence:
    """tokens: prompt, then what was generated
    computed: how many of them have keys and values in the cache
    leader: the sibling whose prompt this one waits to share, None once it need not wait
    order: (priority, arrival number, choice), by which it is admitted and, from the end, preempted
    """

    request: EngineRequest
    choice: int
    order: tuple[int, int, int]
    arrived: float  # s
    tokens: list[int]
    chain: PrefixChain
    leader: "Sequence | None" = None
    deadline: float | None = None  # s, on the clock of `arrived`
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    published: int = 0  # leading blocks that are in the prefix index
    cached_tokens: int = 0
    spoiled: bool = False  # its logits were no numbers, so its keys and values are of no use to others
    held: bool = False
    started: float | None = None  # s, first admission
    first_token: float | None = None  # s
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_ids)

    @property
    def generated(self) -> int:
        """Tokens drawn so far."""
        return len(self.tokens) - len(self.request.prompt_ids)

    @property
    def remaining(self) -> int:
        """Tokens still to be computed before the next one can be drawn."""
        return len(self.tokens) - self.computed

    @property
    def decoding(self) -> bool:
        """Whether only the newest token is to be computed."""
        return self.remaining == 1 and self.computed > 0


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """Tokens [start, start + count) of a sequence that run in this step; samples: the last of them draws a token."""

    sequence: Sequence
    start: int
    count: int

    @property
    def samples(self) -> bool:
        """Whether this chunk completes what is known, so that the next token is drawn."""
        return self.start + self.count == len(self.sequence.tokens)
