"""The demo model's tokenizer: bytes, single digits, the beginnings of frequent words, and A13B's special tokens.

Merges start at a space only, so a word loses at most its beginning to a longer token and the rest stays letters. The tags of
Hunyuan's output are no special tokens and take several tokens each, as in the large model. Knows nothing of the network.
"""

import json
from collections import Counter
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from router_svc.demo_model.chat import CHAT_TEMPLATE
from router_svc.demo_model.data import draw_sample

VOCAB_SIZE = 512
SPECIALS = ("<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>", *(f"<|extra_{n}|>" for n in range(11)))
LAYOUT_MERGES = (
    (" ", " "), ("  ", "  "), ("\n", "\n"), (">", "\n"), (">", "\n\n"), ("<", "/"), ("<", "t"), ("<t", "h"), ("<", "a"), ("<a", "n"), ("<an", "s"),
)
SPLIT = r"'(?:[sdmtSDMT]|[lL]{2}|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CORPUS_SAMPLES = 4000
MODEL_MAX_LENGTH = 2048


def byte_letters() -> dict[int, str]:
    """The printable stand-in of every byte, as byte-level BPE spells them."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (byte for byte in range(256) if byte not in plain)
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def spelled(text: str) -> str:
    """The text's UTF-8 bytes in stand-ins."""
    letters = byte_letters()
    return "".join(letters[byte] for byte in text.encode())


def splitter() -> pre_tokenizers.PreTokenizer:
    """Splits as Hunyuan's tokenizer does, digits one by one, then spells bytes."""
    pieces = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    return pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def word_merges(count: int, seed: int) -> list[tuple[str, str]]:
    """The `count` merges that save most tokens among those that lengthen the beginning of a word after a space.

    A beginning saves one token wherever it occurs, and is never rarer than what it grows into, so the most frequent are right.
    """
    rng, space, beginnings, split = Random(seed), spelled(" "), Counter[str](), splitter()
    for _ in range(CORPUS_SAMPLES):
        for text, _ in draw_sample(rng).pieces:
            for word, _ in split.pre_tokenize_str(text):
                if word.startswith(space) and word[1:].isascii() and word[1:].isalpha():
                    beginnings.update(word[:end] for end in range(2, len(word) + 1))
    ranked = sorted(beginnings, key=lambda start: (-beginnings[start], len(start), start))[:count]
    return [(start[:-1], start[-1]) for start in ranked]


def build_tokenizer(seed: int = 0) -> Tokenizer:
    """The tokenizer; the same seed gives the same vocabulary while the data stay as they are."""
    layout = [(spelled(left), spelled(right)) for left, right in LAYOUT_MERGES]
    merges = layout + word_merges(VOCAB_SIZE - 256 - len(layout) - len(SPECIALS), seed)
    tokens = [*byte_letters().values(), *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: rank for rank, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = splitter()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(f"the vocabulary has {tokenizer.get_vocab_size()} tokens, expected {VOCAB_SIZE}")
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json with the chat template."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|startoftext|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>",
        "add_bos_token": False, "add_eos_token": False, "clean_up_tokenization_spaces": False, "model_max_length": MODEL_MAX_LENGTH,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
