"""Tokenizers as people have them: the ids are transformers', whichever of the files define them."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from experts.errors import UserError
from router_svc.text.tokenizer_files import load_tokenizer
from tests import checkpoints
from tests.source import ROOT

TEXTS = (
    "Hello world",
    "  two  spaces\n\ttab ",
    "<|im_start|>user<|im_end|> <s>x</s>",
    "naïve €uro 😀",
    "a<|tool|>b <|tool|> c",
    "",
)


def edit(path: Path, **values: Any) -> None:
    held = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(held | values))


def entry(content: str, **flags: bool) -> dict[str, Any]:
    usual = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": False}
    return {"content": content} | usual | flags


def check(folder: Path, library: Any) -> None:
    """Same ids and the same text again, with and without what the tokenizer adds."""
    own, right = load_tokenizer(folder), library.from_pretrained(str(folder))
    right.backend_tokenizer.no_truncation()
    for text in TEXTS:
        for add in (True, False):
            ids = right(text, add_special_tokens=add, truncation=False, padding=False)["input_ids"]
            assert own.encode(text, add) == ids, (text, add)
            for skip in (True, False):
                assert own.decode(ids, skip) == right.backend_tokenizer.decode(ids, skip_special_tokens=skip)
    if right.eos_token_id is not None:
        assert own.eos_ids == (right.eos_token_id,)
    assert own.special_texts.get("bos_token") == right.bos_token


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoints.write_tokenizer(tmp_path)
    return tmp_path


def test_tokenizer_json_alone(folder: Path) -> None:
    check(folder, PreTrainedTokenizerFast)
    (folder / "tokenizer_config.json").unlink()
    check(folder, PreTrainedTokenizerFast)


def test_truncation_and_padding_of_the_file_are_no_part_of_the_ids(folder: Path) -> None:
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padded = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    whole = load_tokenizer(folder).encode("Hello world " * 9, True)
    edit(folder / "tokenizer.json", truncation=cut, padding=padded)
    assert load_tokenizer(folder).encode("Hello world " * 9, True) == whole
    assert len(load_tokenizer(folder).encode("a", True)) < 4


@pytest.mark.parametrize("flags", [{}, {"special": True}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}])
def test_tokens_that_only_added_tokens_decoder_names(folder: Path, flags: dict[str, bool]) -> None:
    size = Backend.from_file(str(folder / "tokenizer.json")).get_vocab_size(True)
    edit(folder / "tokenizer_config.json", added_tokens_decoder={str(size): entry("<|tool|>", **flags)})
    check(folder, PreTrainedTokenizerFast)
    own = load_tokenizer(folder)
    assert own.encode("<|tool|>", False) == [size]
    assert (size in own.special_ids) is flags.get("special", False)


def test_special_tokens_map_and_added_tokens_alone(folder: Path) -> None:
    config = folder / "tokenizer_config.json"
    held = json.loads(config.read_text())
    for key in [key for key in held if key.endswith("_token")]:
        del held[key]
    config.write_text(json.dumps(held))
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "bos_token": {"content": "<s>"}})
    )
    check(folder, PreTrainedTokenizerFast)
    size = Backend.from_file(str(folder / "tokenizer.json")).get_vocab_size(True)
    edit(folder / "added_tokens.json", **{"<|tool|>": size})
    check(folder, PreTrainedTokenizerFast)


def test_normalizer_and_post_processor_of_the_file_count(tmp_path: Path) -> None:
    """A class's own pipeline would take their place."""
    words = {text: i for i, text in enumerate(["<s>", "[UNK]", "hello", "world", "</s>", "x"])}
    backend = Backend(models.WordLevel(words, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    backend.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 4)])  # type: ignore[assignment]
    backend.save(str(tmp_path / "tokenizer.json"))
    edit(tmp_path / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer", eos_token="</s>")
    own = load_tokenizer(tmp_path)
    assert own.encode("HELLO World", True) == [0, 2, 3, 4]
    assert own.encode("HELLO World", False) == [2, 3]
    assert own.eos_ids == (4,)


def test_vocab_and_merges(folder: Path) -> None:
    held = json.loads((folder / "tokenizer.json").read_text())
    model = held["model"]
    assert model["type"] == "BPE"
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    (folder / "tokenizer.json").unlink()
    edit(folder / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")
    check(folder, AutoTokenizer)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "a dog ate the cat", "  x  y"] * 20), model_writer=model,
        vocab_size=300, byte_fallback=True, model_type="bpe", hard_vocab_limit=False,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def test_tokenizer_model_gives_sentencepieces_ids(tmp_path: Path, pieces: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(pieces)
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    edit(tmp_path / "tokenizer_config.json", add_bos_token=True, legacy=True, **tokens)  # as Mixtral's has them
    right = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    own = load_tokenizer(tmp_path)
    # Not of a text with a space in front: transformers takes that for the one that sentencepiece would add.
    for text in ("the cat sat", "a  dog\nate € 😀", "the ", "cat"):
        ids = right.encode(text)
        assert own.encode(text, False) == ids, text
        assert own.encode(text, True) == [right.bos_id(), *ids]
        assert own.decode(ids) == right.decode(ids)
    assert own.encode("a</s>", False)[-1] == right.eos_id(), "specials in the text are one id each"
    assert own.eos_ids == (right.eos_id(),)
    check(tmp_path, LlamaTokenizer)


def test_tokenizer_model_with_added_tokens(tmp_path: Path, pieces: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(pieces)
    size = sentencepiece.SentencePieceProcessor(model_proto=pieces).vocab_size()
    names = {"<|im_end|>": size, "<|im_start|>": size + 1}
    (tmp_path / "added_tokens.json").write_text(json.dumps(names))
    decoder = {str(id_): entry(name, special=name.endswith("end|>")) for name, id_ in names.items()}
    edit(tmp_path / "tokenizer_config.json", added_tokens_decoder=decoder, eos_token="<|im_end|>")
    own = load_tokenizer(tmp_path)
    assert own.encode("<|im_start|>cat<|im_end|>", False)[0] == size + 1
    assert own.encode("<|im_start|>cat<|im_end|>", False)[-1] == size
    assert own.decode([size + 1], skip_special=False) == "<|im_start|>"
    assert own.eos_ids == (size,)
    check(tmp_path, LlamaTokenizer)


@pytest.mark.parametrize("gap", [0, 1, 7])
def test_added_tokens_have_the_ids_of_their_files(tmp_path: Path, pieces: bytes, gap: int) -> None:
    """Models were trained with the files' ids, which may leave some out; the library would count on without a gap."""
    (tmp_path / "tokenizer.model").write_bytes(pieces)
    right = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    end = right.vocab_size() + gap
    names = {"<|im_end|>": end, "<|im_start|>": end + 1 + gap, "<|bos|>": end + 40}
    (tmp_path / "added_tokens.json").write_text(json.dumps(names))
    edit(tmp_path / "tokenizer_config.json", eos_token="<|im_end|>", bos_token="<|bos|>", add_bos_token=True)
    own = load_tokenizer(tmp_path)
    said = own.encode("<|im_start|>the cat<|im_end|>", True)
    assert (said[0], said[1], said[-1]) == (end + 40, end + 1 + gap, end)
    assert own.encode("the cat", False) == right.encode("the cat")
    assert own.decode([end + 1 + gap], skip_special=False) == "<|im_start|>"
    assert own.eos_ids == (end,)
    assert own.decode(said[2:-1]) == "the cat"


def test_an_added_token_whose_id_another_has_is_refused(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", added_tokens_decoder={"5": entry("<|tool|>")})
    with pytest.raises(UserError, match=r"token '<\|tool\|>' read with id \d+, expected id 5"):
        load_tokenizer(folder)


def test_hunyuans_tokenizer_is_chosen_by_class_or_family(tmp_path: Path) -> None:
    (tmp_path / "hy.tiktoken").write_text("YQ== 0\nYg== 1\n")
    with pytest.raises(UserError, match="a tiktoken vocabulary of a family"):
        load_tokenizer(tmp_path)
    edit(tmp_path / "config.json", model_type="hunyuan_v1_moe")
    assert load_tokenizer(tmp_path).encode("ab", False) == [0, 1]
    edit(tmp_path / "tokenizer_config.json", tokenizer_class="SomeOther")
    with pytest.raises(UserError, match="a tiktoken vocabulary of a family"):
        load_tokenizer(tmp_path)
    edit(tmp_path / "tokenizer_config.json", tokenizer_class="HYTokenizer", eos_token="<|eos|>")
    found = load_tokenizer(tmp_path)
    assert found.encode("<|eos|>", False) == list(found.eos_ids) == [5]
    (tmp_path / "hy.tiktoken").write_text("!!! 1")
    with pytest.raises(UserError, match="line 1"):
        load_tokenizer(tmp_path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4" * 64 + b"\nsize 1000\n"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tekken.json", b"{}", "only tekken.json, Mistral's own tokenizer"),
        ("qwen.tiktoken", b"YQ== 0", "only qwen.tiktoken"),
        ("tokenizer.model", b"junk", "tokenizer.model"),
        ("tokenizer.json", b"{}", "tokenizer.json"),
        ("tokenizer.json", b"\xff\xfe", "tokenizer.json"),
        ("special_tokens_map.json", b"[1]", "special_tokens_map.json"),
        ("added_tokens.json", b"{", "added_tokens.json"),
        ("tokenizer_config.json", b'"text"', "tokenizer_config.json"),
        ("tokenizer.json", POINTER, "tokenizer.json: found a git-lfs pointer"),
        ("tokenizer.model", POINTER, "tokenizer.model: found a git-lfs pointer"),
        ("hy.tiktoken", POINTER, "hy.tiktoken: found a git-lfs pointer"),
        ("added_tokens.json", POINTER, "added_tokens.json: found a git-lfs pointer"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    with pytest.raises(UserError, match=r"no tokenizer, expected tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ranks_and_commands_do_without_transformers() -> None:
    code = (
        "import sys\n"
        "import cluster.cli.main, experts.worker.host, router_svc.worker, router_svc.client, cluster.control.supervisor\n"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=300)
