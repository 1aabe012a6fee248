"""Incremental detokenisation: ids in, text out, never half a character; the parts join to the whole's text."""

from router_svc.text.tokenizer import Tokenizer

_UNFINISHED = "\ufffd"


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
        before, after = self._texts()
        if len(after) <= len(before) or after.endswith(_UNFINISHED):
            return ""
        self._context, self._told = self._told, len(self._ids)
        return after[len(before) :]

    def finish(self) -> str:
        """What is left, broken characters as U+FFFD."""
        before, after = self._texts()
        self._context, self._told = self._told, len(self._ids)
        return after[len(before) :]

    def _texts(self) -> tuple[str, str]:
        before = self._tokenizer.decode(self._ids[self._context : self._told])
        return before, self._tokenizer.decode(self._ids[self._context :])
