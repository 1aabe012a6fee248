"""Incremental detokenisation: ids in, text out, never half a character; prompt and parts join to the whole's text."""

from collections.abc import Sequence
from typing import NamedTuple

from router_svc.text.tokenizer import Tokenizer

_UNFINISHED = "\ufffd"
_PATIENCE = 32  # ids that may wait for a character's end; more than any character has are no characters
_CHARACTER = 4  # ids of the longest character, a byte each
_CONTINUATIONS = [bytes([byte]) for byte in range(0x80, 0xC0)]  # of UTF-8
_CONTEXT = 8  # ids of the prompt that are decoded with what follows, more where they have no text


class Detokenizer:
    """One choice's ids to text.

    New ids are decoded together with those of the last piece, so that what depends on the neighbour (leading
    spaces, runs of bytes) comes out as in the whole.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = (), skip_special: bool = True) -> None:
        """prompt: ids in front, whose text is not given
        skip_special: specials are left out
        """
        self._tokenizer, self._skip = tokenizer, skip_special
        self._ids, self._given = _tail(tokenizer, prompt, skip_special)  # ids before _given have been handed out
        self._context = 0  # the last piece handed out starts here

    def add(self, ids: Sequence[int]) -> str:
        """The text that `ids` complete; may be empty while a character is unfinished."""
        self._ids.extend(ids)
        before, after = self._texts(len(self._ids))
        if not after.endswith(_UNFINISHED):
            if len(after) > len(before):
                return self._hand_out(before, after, len(self._ids))
            if len(self._ids) - self._given > _PATIENCE:  # ids without text, such as specials
                self._given = len(self._ids)
            return ""
        if len(self._ids) - self._given <= _PATIENCE:
            return ""
        # Broken bytes without end: what is older than a character is given, so that a step's cost stays bounded.
        cut = len(self._ids) - _CHARACTER
        return self._hand_out(before, self._texts(cut)[1], cut)

    def finish(self) -> str:
        """What is left, broken characters as U+FFFD."""
        before, after = self._texts(len(self._ids))
        return self._hand_out(before, after, len(self._ids))

    def would_add(self, token: int) -> str | None:
        """The text that `token` alone would complete here; None within a character that it does not end alone."""
        before, now = self._texts(len(self._ids))
        after = self._tokenizer.decode([*self._ids[self._context :], token], self._skip)
        if now != before or after.endswith(_UNFINISHED) or not after.startswith(before):
            return None
        return after[len(before) :]

    def _hand_out(self, before: str, after: str, end: int) -> str:
        self._context, self._given = self._given, end
        return after[len(before) :]

    def _texts(self, end: int) -> tuple[str, str]:
        before = self._tokenizer.decode(self._ids[self._context : self._given], self._skip)
        return before, self._tokenizer.decode(self._ids[self._context : end], self._skip)


class TokenText(NamedTuple):
    """A token as it stands in a text.

    text: what it adds, or its name where it adds no whole characters
    raw: its part of the text's UTF-8
    offset: characters of the text before it
    """

    text: str
    raw: bytes
    offset: int


class TokenTexts:
    """Walks one choice's tokens and says what each adds to the text."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = (), skip_special: bool = True) -> None:
        """prompt: ids in front that are not walked
        skip_special: specials take no room in the text
        """
        self._tokenizer, self._skip = tokenizer, skip_special
        self._detokenizer = Detokenizer(tokenizer, prompt, skip_special)
        self._length = 0

    def here(self, token: int) -> TokenText:
        """A token that might stand here."""
        if self._skip and token in self._tokenizer.special_ids:
            name = self._tokenizer.token_text(token)
            return TokenText(name, name.encode(), self._length)
        text = self._detokenizer.would_add(token)
        if text is None:
            return TokenText(self._tokenizer.token_text(token), self._tokenizer.token_bytes(token), self._length)
        return TokenText(text, text.encode(), self._length)

    def step(self, token: int) -> TokenText:
        """The token that stands here; the next one stands behind it."""
        found = self.here(token)
        self._length += len(self._detokenizer.add((token,)))
        return found


def _tail(tokenizer: Tokenizer, prompt: Sequence[int], skip_special: bool) -> tuple[list[int], int]:
    """The prompt's last ids, enough to have text, and how many of them end before an unfinished character."""
    count = _CONTEXT
    while count < len(prompt) and not tokenizer.decode(list(prompt[-count:]), skip_special):
        count *= 8
    for _ in range(_CHARACTER - 1):  # bytes of a character whose first one is left out would spoil those behind it
        if count < len(prompt) and tokenizer.token_bytes(prompt[-count])[:1] in _CONTINUATIONS:
            count += 1
    ids = list(prompt[-count:])
    end = len(ids)
    pending = _pending(b"".join(tokenizer.token_bytes(token) for token in ids[-_CHARACTER:]))
    while pending > 0 and end > 0:
        end -= 1
        pending -= len(tokenizer.token_bytes(ids[end]))
    return ids, end


def _pending(raw: bytes) -> int:
    """Bytes at the end of `raw` that begin a character and do not end it."""
    for back in range(1, min(_CHARACTER, len(raw) + 1)):
        byte = raw[-back]
        if byte & 0xC0 == 0x80:
            continue
        needs = 2 if byte >> 5 == 0b110 else 3 if byte >> 4 == 0b1110 else 4 if byte >> 3 == 0b11110 else 1
        return back if needs > back else 0
    return 0
