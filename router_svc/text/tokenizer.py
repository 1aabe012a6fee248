"""Text to ids and back. Knows no chat and no request, and no files: `tokenizer_files` reads them."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping

from tokenizers import Tokenizer as Backend

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # a byte of vocabularies with byte fallback


class Tokenizer(ABC):
    """One checkpoint's tokenizer. Ids outside the vocabulary decode to nothing.

    special_ids: left out by `decode`
    eos_ids: that end an answer, as the tokenizer's own files say
    special_texts: bos_token and the like, for chat templates
    """

    special_ids: frozenset[int]
    eos_ids: tuple[int, ...] = ()
    special_texts: Mapping[str, str]

    @abstractmethod
    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Ids of `text`; special tokens written in the text are parsed as such."""

    @abstractmethod
    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        """Text of `ids`; incomplete UTF-8 comes out as U+FFFD."""

    @abstractmethod
    def token_text(self, token: int) -> str:
        """One token alone, for logprobs; specials by their name."""

    def piece(self, token: int) -> str:
        """A token as its vocabulary spells it, such as "Ġthe" or "▁the"; empty outside the vocabulary."""
        return self.token_text(token)

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 of one token; of a character's part, which token_text can only name, the part itself."""
        text = self.token_text(token)
        return self._raw(token) if "\ufffd" in text or _BYTE_PIECE.fullmatch(text) else text.encode()

    @abstractmethod
    def _raw(self, token: int) -> bytes:
        """The bytes of a token that is no whole text."""


class LibraryTokenizer(Tokenizer):
    """A tokenizer of the tokenizers library, as transformers loaded it."""

    def __init__(self, backend: Backend, eos_ids: tuple[int, ...], special_texts: Mapping[str, str]) -> None:
        # A file may carry how its makers cut and padded a batch: that is no part of what a text's ids are.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(token for token, entry in added.items() if entry.special)
        self.eos_ids, self.special_texts = eos_ids, special_texts

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        return str(self._backend.decode(ids, skip_special_tokens=skip_special))

    def token_text(self, token: int) -> str:
        return self.decode([token], skip_special=False)

    def piece(self, token: int) -> str:
        return self._backend.id_to_token(token) or ""

    def _raw(self, token: int) -> bytes:
        return _piece_bytes(self.piece(token))


def _byte_letters() -> dict[str, int]:
    """The letter that byte-level vocabularies write for each byte: itself where it prints, else one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_BYTE_LETTERS = _byte_letters()


def _piece_bytes(piece: str) -> bytes:
    """A vocabulary's entry as bytes: <0xE2> of byte fallback, or the letters of a byte-level vocabulary."""
    found = _BYTE_PIECE.fullmatch(piece)
    if found:
        return bytes.fromhex(found[1])
    if all(letter in _BYTE_LETTERS for letter in piece):
        return bytes(_BYTE_LETTERS[letter] for letter in piece)
    return piece.encode()
