"""One choice on its way out: ids to text, stop strings cut, reasoning apart."""

from router_svc.api.calls import Chunk, Usage
from router_svc.request import TokenEvent, TokenLogprob
from router_svc.text.detokenize import Detokenizer
from router_svc.text.reasoning import Plain, ReasoningParser
from router_svc.text.stop import StopStrings
from router_svc.text.tokenizer import Tokenizer


class ChoiceOutput:
    """Turns a choice's token events into chunks. Logprobs travel with the chunk that carries their token."""

    def __init__(
        self, tokenizer: Tokenizer, stop: tuple[str, ...], parser: ReasoningParser | None, silent_ids: frozenset[int]
    ) -> None:
        """silent_ids: ids that end a choice and are not part of its text (eos and stop ids)."""
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = StopStrings(stop)
        self._parser = parser or Plain()
        self._silent = silent_ids
        self._tokens = 0
        self.ended = False

    def take(self, event: TokenEvent, prompt_len: int) -> Chunk:
        """The event as a chunk; `ended` tells whether it is the last, be it by a stop string."""
        ids = event.token_ids
        reason = event.finish_reason
        spoken = ids[:-1] if reason == "stop" and ids and ids[-1] in self._silent else ids
        text = self._stop.add(self._detokenizer.add(spoken)) if spoken else ""
        stop_reason: str | int | None = None
        if reason == "stop":
            stop_reason = ids[-1]
        if reason is not None and self._stop.matched is None:
            text += self._stop.add(self._detokenizer.finish())
            if self._stop.matched is None:
                text += self._stop.finish()
        if self._stop.matched is not None:
            reason, stop_reason = "stop", self._stop.matched
        parted = self._parser.add(text)
        reasoning, content = parted.reasoning, parted.content
        self._tokens += len(ids)
        usage = None
        if reason is not None:
            rest = self._parser.finish()
            reasoning, content = reasoning + rest.reasoning, content + rest.content
            usage = Usage(prompt_len, self._tokens, event.cached_tokens)
            self.ended = True
        return Chunk(
            choice=event.choice,
            index=event.index,
            text=content,
            reasoning=reasoning,
            token_ids=ids,
            logprobs=event.logprobs,
            finish_reason=reason,
            stop_reason=stop_reason,
            usage=usage,
            timings=event.timings if reason is not None else None,
            prompt_logprobs=event.prompt_logprobs,
        )


def logprob_texts(tokenizer: Tokenizer, entry: TokenLogprob) -> tuple[str, list[tuple[str, float]]]:
    """The token's text and those of its alternatives, for display."""
    return tokenizer.token_text(entry.token_id), [(tokenizer.token_text(t), p) for t, p in entry.top]
