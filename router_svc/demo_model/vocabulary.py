"""The demo model's tokenizer: a byte-level BPE of 512 tokens, trained on its own data. Any text round-trips.

Digits, punctuation and line breaks stand alone, so numbers are read digit by digit and `<think>` takes several
tokens, as in the large model.
"""

import json
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from router_svc.demo_model.chat import CHAT_TEMPLATE
from router_svc.demo_model.corpus import draw_document

SIZE = 512
SPECIALS = (
    "<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>", *(f"<|extra_{i}|>" for i in range(11)),
)  # fmt: skip
PIECES = r" ?\p{L}+|\p{N}|\n+| ?[^\s\p{L}\p{N}]|\s"


def train_tokenizer(seed: int, documents: int = 20_000) -> Tokenizer:
    """Learn the merges from drawn documents. Special tokens have the ids 0 to 15."""
    rng = Random(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (
        part for _ in range(documents) for d in [draw_document(rng)] for part in (_plain(d.prompt), _plain(d.target))
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json with the chat template."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|eos|>",
        "pad_token": "<|pad|>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _plain(text: str) -> str:
    for special in SPECIALS:
        text = text.replace(special, "")
    return text
