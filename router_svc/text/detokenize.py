"""Incremental detokenisation: ids in, text out, never half a character; the parts join to the whole's text."""

from router_svc.text.tokenizer import Tokenizer

_UNFINISHED = "\ufffd"
_PATIENCE = 32  # ids that may wait for a character's end; more than any character has are no characters
_CHARACTER = 4  # ids of the longest character, a byte each


class Detokenizer:
    """One choice's ids to text. Specials are left out.

    New ids are decoded together with those of the last piece, so that what depends on the neighbour (leading
    spaces, runs of bytes) comes out as in the whole.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # the last piece handed out starts here
        self._told = 0  # ids before this have been handed out

    def add(self, ids: tuple[int, ...]) -> str:
        """The text that `ids` complete; may be empty while a character is unfinished."""
        self._ids.extend(ids)
        before, after = self._texts(len(self._ids))
        if not after.endswith(_UNFINISHED):
            return self._hand_out(before, after, len(self._ids)) if len(after) > len(before) else ""
        if len(self._ids) - self._told <= _PATIENCE:
            return ""
        # Broken bytes without end: what is older than a character is told, so that a step's cost stays bounded.
        cut = len(self._ids) - _CHARACTER
        return self._hand_out(before, self._texts(cut)[1], cut)

    def finish(self) -> str:
        """What is left, broken characters as U+FFFD."""
        before, after = self._texts(len(self._ids))
        return self._hand_out(before, after, len(self._ids))

    def _hand_out(self, before: str, after: str, end: int) -> str:
        self._context, self._told = self._told, end
        return after[len(before) :]

    def _texts(self, end: int) -> tuple[str, str]:
        before = self._tokenizer.decode(self._ids[self._context : self._told])
        return before, self._tokenizer.decode(self._ids[self._context : end])
