"""Hunyuan's own tokenizer, hy.tiktoken: lines of base64 and rank. Chosen by its class's name, never by a file's ending."""

import base64
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import tiktoken

from experts.errors import UserError
from router_svc.text.tokenizer import Tokenizer

CLASS = "HYTokenizer"  # of tokenizer_config.json
FILE = "hy.tiktoken"
# Contractions, words with at most one leading mark, single digits, runs of marks, white space.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIALS = (
    "<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>", *(f"<|extra_{i}|>" for i in range(205)),
)  # fmt: skip


class HunyuanTokenizer(Tokenizer):
    """Its special tokens follow the ranks; text is NFC-normalised."""

    def __init__(self, path: Path, special_texts: Mapping[str, str]) -> None:
        ranks = _read_ranks(path)
        specials = {name: len(ranks) + i for i, name in enumerate(_SPECIALS)}
        self._inner = tiktoken.Encoding("hunyuan", pat_str=_SPLIT, mergeable_ranks=ranks, special_tokens=specials)
        self.special_ids = frozenset(specials.values())
        self.special_texts = special_texts
        eos = specials.get(special_texts.get("eos_token", ""))
        self.eos_ids = () if eos is None else (eos,)
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
