"""One choice on its way out: ids to text, reasoning apart, stop strings cut, log-probabilities with their tokens' texts."""

from collections.abc import Sequence

from router_svc.api.calls import Chunk, NamedLogprob, Usage
from router_svc.request import TokenEvent, TokenLogprob
from router_svc.text.detokenize import Detokenizer, TokenTexts
from router_svc.text.reasoning import Plain, ReasoningParser
from router_svc.text.stop import StopStrings
from router_svc.text.tokenizer import Tokenizer


class ChoiceOutput:
    """Turns a choice's token events into chunks. Log-probabilities travel with the chunk that carries their token.

    prompt: the request's ids
    stop: strings that end the content (not the reasoning)
    parser: of a chat
    eos_ids, stop_ids: that end a choice and are not part of its text: the model's own, and those that the caller named
    echoes: the prompt's own log-probabilities come, so that places in the text count from its beginning
    include_stop: what ends the choice is part of its text
    skip_special: special tokens have no text
    min_tokens: no stop string counts that ends within the text of so many tokens
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        stop: tuple[str, ...],
        parser: ReasoningParser | None,
        eos_ids: Sequence[int],
        stop_ids: Sequence[int],
        *,
        echoes: bool = False,
        include_stop: bool = False,
        skip_special: bool = True,
        min_tokens: int = 0,
    ) -> None:
        self._min_tokens = min_tokens
        self._prompt = prompt
        self._detokenizer = Detokenizer(tokenizer, prompt, skip_special)
        self._texts = TokenTexts(tokenizer, () if echoes else prompt, skip_special)
        self._stop = StopStrings(stop, include_stop)
        self._parser = parser or Plain()
        self._silent = frozenset() if include_stop else frozenset((*eos_ids, *stop_ids))
        self._stop_ids = frozenset(stop_ids)
        self._tokens = self._reasoning_tokens = 0
        self.ended = False

    def take(self, event: TokenEvent) -> Chunk:
        """The event as a chunk; `ended` says whether it is the last, be it by a stop string."""
        ids, reason = event.token_ids, event.finish_reason
        prompt_logprobs = self._of_prompt(event.prompt_logprobs)
        spoken = ids[:-1] if reason == "stop" and ids and ids[-1] in self._silent else ids
        reasoned = self._parser.reasons
        text = self._detokenizer.add(spoken) if spoken else ""
        if reason is not None:
            text += self._detokenizer.finish()
        reasoning, content = self._parser.add(text)
        if reason is not None:
            rest = self._parser.finish(cut=reason == "length")
            reasoning, content = reasoning + rest.reasoning, content + rest.content
        self._tokens += len(ids)
        content = self._stop.add(content, counts=self._tokens > self._min_tokens)
        stop_reason: str | int | None = ids[-1] if reason == "stop" and ids[-1] in self._stop_ids else None
        if self._stop.matched is not None:
            reason, stop_reason = "stop", self._stop.matched
        elif reason is not None:
            content += self._stop.finish()
        if reasoned or reasoning:
            self._reasoning_tokens += len(ids)
        if reason is not None:
            self.ended = True
        return Chunk(
            choice=event.choice,
            index=event.index,
            text=content,
            reasoning=reasoning,
            token_ids=ids,
            logprobs=tuple(self._named(entry) for entry in event.logprobs),
            finish_reason=reason,
            stop_reason=stop_reason,
            usage=self._usage(event) if reason is not None else None,
            timings=event.timings if reason is not None else None,
            prompt_logprobs=prompt_logprobs,
        )

    def _usage(self, event: TokenEvent) -> Usage:
        return Usage(len(self._prompt), self._tokens, event.cached_tokens, self._reasoning_tokens)

    def _of_prompt(self, entries: tuple[TokenLogprob | None, ...]) -> tuple[NamedLogprob, ...]:
        """The first token of a prompt has no log-probability."""
        return tuple(
            NamedLogprob(token, *self._texts.step(token), None) if entry is None else self._named(entry)
            for token, entry in zip(self._prompt, entries, strict=False)
        )

    def _named(self, entry: TokenLogprob) -> NamedLogprob:
        top = tuple(NamedLogprob(token, *self._texts.here(token), value) for token, value in entry.top)
        return NamedLogprob(entry.token_id, *self._texts.step(entry.token_id), entry.logprob, top)
