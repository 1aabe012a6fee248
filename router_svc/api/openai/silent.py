"""Chunks of a stream that would show a client nothing."""

from dataclasses import replace

from router_svc.api.calls import Chunk


class SilentChunks:
    """Holds them back: their ids and logprobs go out with the next chunk of their choice that has text, or ends it."""

    def __init__(self, opening: frozenset[int] | None = None) -> None:
        """opening: choices whose first chunk shows something without text of its own; None: all."""
        self._opening = opening
        self._begun: set[int] = set()
        self._held: dict[int, Chunk] = {}

    def take(self, chunk: Chunk) -> Chunk | None:
        """The chunk to send now, with what was held before it."""
        held = self._held.pop(chunk.choice, None)
        if held is not None:
            chunk = _joined(held, chunk)
        opens = chunk.choice not in self._begun and (self._opening is None or chunk.choice in self._opening)
        if chunk.text or chunk.reasoning or chunk.finish_reason is not None or opens:
            self._begun.add(chunk.choice)
            return chunk
        self._held[chunk.choice] = chunk
        return None


def _joined(first: Chunk, then: Chunk) -> Chunk:
    """Both as one; the first has neither text nor an end."""
    return replace(
        then,
        index=first.index,
        token_ids=first.token_ids + then.token_ids,
        logprobs=first.logprobs + then.logprobs,
        prompt_token_ids=first.prompt_token_ids or then.prompt_token_ids,
        prompt_logprobs=first.prompt_logprobs or then.prompt_logprobs,
    )
