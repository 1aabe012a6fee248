"""Text to ids and back, whatever file a checkpoint brings: tokenizer.json, tokenizer.model or *.tiktoken.

Knows no chat and no request. Ids outside the tokenizer's vocabulary decode to nothing.
"""

import base64
import json
import re
import unicodedata
from abc import ABC, abstractmethod
from pathlib import Path

import sentencepiece
import tiktoken
import tokenizers

from experts.errors import UserError

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # a byte of vocabularies with byte fallback


class Tokenizer(ABC):
    """One checkpoint's tokenizer. special_ids are left out by `decode`."""

    special_ids: frozenset[int]

    @abstractmethod
    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Ids of `text`; special tokens written in the text are parsed as such."""

    @abstractmethod
    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        """Text of `ids`; incomplete UTF-8 comes out as U+FFFD."""

    @abstractmethod
    def token_text(self, token: int) -> str:
        """One token alone, for logprobs; specials by their name."""

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 of one token; of a character's part, which token_text can only name, the part itself."""
        text = self.token_text(token)
        return self._raw(token) if "\ufffd" in text or _BYTE_PIECE.fullmatch(text) else text.encode()

    @abstractmethod
    def _raw(self, token: int) -> bytes:
        """The bytes of a token that is no whole text."""


class JsonTokenizer(Tokenizer):
    """tokenizer.json through the tokenizers library."""

    def __init__(self, path: Path) -> None:
        try:
            self._inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every malformed file
            raise UserError(
                f"an unreadable tokenizer ({error})", "a tokenizer.json of the tokenizers library", str(path)
            ) from None
        added = self._inner.get_added_tokens_decoder()
        self.special_ids = frozenset(token for token, entry in added.items() if entry.special)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        return str(self._inner.decode(ids, skip_special_tokens=skip_special))

    def token_text(self, token: int) -> str:
        return self.decode([token], skip_special=False)

    def _raw(self, token: int) -> bytes:
        return _piece_bytes(self._inner.id_to_token(token) or "")


class SentencePieceTokenizer(Tokenizer):
    """tokenizer.model; bos is put in front as add_bos_token of tokenizer_config.json says (default: yes)."""

    def __init__(self, path: Path, settings: dict[str, object]) -> None:
        try:
            self._inner = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(f"an unreadable tokenizer ({error})", "a sentencepiece model", str(path)) from None
        self._bos = self._inner.bos_id() if settings.get("add_bos_token", True) else -1
        size = self._inner.vocab_size()
        self.special_ids = frozenset(i for i in range(size) if self._inner.is_control(i) or self._inner.is_unknown(i))
        self._size = size

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids = list(self._inner.encode(text))
        return [self._bos, *ids] if add_special_tokens and self._bos >= 0 else ids

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        wanted = [i for i in ids if 0 <= i < self._size and not (skip_special and i in self.special_ids)]
        return str(self._inner.decode(wanted))

    def token_text(self, token: int) -> str:
        return str(self._inner.id_to_piece(token)).replace("\u2581", " ") if 0 <= token < self._size else ""

    def _raw(self, token: int) -> bytes:
        return _piece_bytes(str(self._inner.id_to_piece(token)))


# Hunyuan's split: contractions, words with at most one leading mark, single digits, runs of marks, white space.
_HUNYUAN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_HUNYUAN_SPECIALS = (
    "<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>", *(f"<|extra_{i}|>" for i in range(205)),
)  # fmt: skip


class TiktokenTokenizer(Tokenizer):
    """Hunyuan's hy.tiktoken: lines of base64 and rank; its special tokens follow the ranks; text is NFC-normalised."""

    def __init__(self, path: Path) -> None:
        ranks = _read_ranks(path)
        specials = {name: len(ranks) + i for i, name in enumerate(_HUNYUAN_SPECIALS)}
        self._inner = tiktoken.Encoding(
            "hunyuan", pat_str=_HUNYUAN_SPLIT, mergeable_ranks=ranks, special_tokens=specials
        )
        self.special_ids = frozenset(specials.values())
        self._size = len(ranks) + len(specials)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._inner.encode(unicodedata.normalize("NFC", text), allowed_special="all")

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        wanted = [i for i in ids if 0 <= i < self._size and not (skip_special and i in self.special_ids)]
        return self._inner.decode(wanted)

    def token_text(self, token: int) -> str:
        return self._inner.decode([token]) if 0 <= token < self._size else ""

    def _raw(self, token: int) -> bytes:
        return self._inner.decode_single_token_bytes(token)


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


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder. Raises UserError when there is none that is read here."""
    if (folder / "tokenizer.json").is_file():
        return JsonTokenizer(folder / "tokenizer.json")
    if (folder / "tokenizer.model").is_file():
        return SentencePieceTokenizer(folder / "tokenizer.model", tokenizer_settings(folder))
    ranks = sorted(folder.glob("*.tiktoken"))
    if ranks:
        return TiktokenTokenizer(ranks[0])
    raise UserError("no tokenizer", "tokenizer.json, tokenizer.model or *.tiktoken", str(folder))


def tokenizer_settings(folder: Path) -> dict[str, object]:
    """tokenizer_config.json, empty when there is none."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"unreadable JSON ({error})", "a JSON object", str(path)) from None
    if not isinstance(settings, dict):
        raise UserError(f"JSON {type(settings).__name__}", "a JSON object", str(path))
    return settings


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise UserError(f"line {number} = {line[:40]!r}", "base64 and a rank", str(path)) from None
    return ranks
