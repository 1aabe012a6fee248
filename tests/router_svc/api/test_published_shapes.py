"""Checkpoints in every published form, asked over HTTP by text, give transformers' ids and greedy tokens."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers

from tests import checkpoints
from tests.http_calls import post
from tests.server import one_process

TEXT = "The quick brown fox\njumps over 12 lazy dogs. "
COUNT = 12


def as_it_is(folder: Path) -> None:
    """transformers 5: rope_parameters, one file or shards, tokenizer.json."""


def older_dialect(folder: Path) -> None:
    """transformers 4: rope_theta and rope_scaling, torch_dtype."""
    checkpoints.as_transformers_4(folder)


def rewritten(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The tensors as `change` has them, in one file."""
    tensors: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})


def fused(folder: Path) -> None:
    """Experts in one tensor a layer, named as transformers 5 holds them in memory."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    model.save_pretrained(folder, save_original_format=False)
    names = [name for path in folder.glob("*.safetensors") for name in load_file(path)]
    assert any(name.endswith("mlp.experts.gate_up_proj") for name in names)


def other_tying(folder: Path) -> None:
    """Tied where the family's usual form is not, and the other way round; weights follow."""
    config = json.loads((folder / "config.json").read_text())
    tied = not config.get("tie_word_embeddings", False)
    checkpoints.edit_config(folder, tie_word_embeddings=tied)

    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        tensors.pop("lm_head.weight", None)
        return tensors if tied else {**tensors, "lm_head.weight": (tensors["model.embed_tokens.weight"] * 0.7 + 0.1)}

    rewritten(folder, change)


def without_prefix(folder: Path) -> None:
    """Saved as the model without its head class: names without `model.`."""
    rewritten(folder, lambda tensors: {name.removeprefix("model."): tensor for name, tensor in tensors.items()})


def vocab_and_merges(folder: Path) -> None:
    """vocab.json and merges.txt in place of tokenizer.json, with the special tokens behind, as Qwen's older folders are."""
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    (folder / "vocab.json").write_text(json.dumps(letters))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer.json").unlink()
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    names = ["<|endoftext|>", *(f"<|extra_{i}|>" for i in range(9))]
    decoder = {str(len(letters) + i): {"content": name, "special": True, **flags} for i, name in enumerate(names)}
    settings = {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": decoder, "eos_token": names[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "unk_token": None, "bos_token": None}))


def special_tokens_map_only(folder: Path) -> None:
    """eos and a further special token stand in special_tokens_map.json alone."""
    (folder / "tokenizer_config.json").unlink()
    names = {"eos_token": "<|endoftext|>", "additional_special_tokens": ["<|extra_0|>"]}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))


def added_tokens_decoder_only(folder: Path) -> None:
    """A token that only tokenizer_config.json adds."""
    made = json.loads((folder / "tokenizer.json").read_text())
    made["added_tokens"] = [token for token in made["added_tokens"] if token["content"] != "<|extra_5|>"]
    (folder / "tokenizer.json").write_text(json.dumps(made))
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {"6": {"content": "<|extra_5|>", "special": True, **flags}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


SHAPES = [
    as_it_is, older_dialect, fused, other_tying, without_prefix, vocab_and_merges, special_tokens_map_only,
    added_tokens_decoder_only,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "shape"),
    [
        pytest.param(architecture, shape, id=f"{architecture}-{shape.__name__}")
        for architecture in sorted(checkpoints.ARCHITECTURES)
        for shape in SHAPES
        if (architecture, shape) != ("mixtral", vocab_and_merges)  # whose class in transformers reads no such files
    ],
)
def test_tokens_are_transformers(architecture: str, shape: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(checkpoints.shared(architecture), folder)
    shape(folder)
    kind = "AutoTokenizer" if shape is vocab_and_merges else "PreTrainedTokenizerFast"
    text = f"{TEXT}<|extra_5|>"
    ids = getattr(transformers, kind).from_pretrained(folder)(text)["input_ids"]
    wanted, logits = checkpoints.reference_greedy(folder, ids, COUNT)
    assert checkpoints.smallest_gap(logits) >= 1e-4, "pick another text: a near-tie decides a token"
    with one_process(folder) as server:
        body = {"prompt": text, "max_tokens": COUNT, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        status, found, _ = post(server, "/v1/completions", body)
    assert status == 200, found
    assert found["choices"][0]["prompt_token_ids"] == ids
    assert found["choices"][0]["token_ids"] == wanted


@pytest.mark.slow
def test_a_sentencepiece_model_gives_its_own_ids(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(checkpoints.shared("mixtral"), folder)
    (folder / "tokenizer.json").unlink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT, "a dog ate the cat", "The lazy dogs"] * 30), model_prefix=str(tmp_path / "m"),
        vocab_size=310, byte_fallback=True, model_type="bpe", hard_vocab_limit=False, normalization_rule_name="identity",
        remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "m.model").rename(folder / "tokenizer.model")
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokens, "add_bos_token": True, "legacy": True}))
    right = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ids = [right.bos_id(), *right.encode(TEXT)]
    wanted, _ = checkpoints.reference_greedy(folder, ids, COUNT)
    with one_process(folder) as server:
        body = {"prompt": TEXT, "max_tokens": COUNT, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        found = post(server, "/v1/completions", body)[1]
    assert found["choices"][0]["prompt_token_ids"] == ids
    assert found["choices"][0]["token_ids"] == wanted
