"""Detokenisation and stop strings: whatever the chunks, the same text; tokenizers of all three kinds."""

import base64
import io

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from router_svc.demo_model.path import checkpoint_path
from router_svc.text.detokenize import Detokenizer, TokenTexts
from router_svc.text.stop import StopStrings
from router_svc.text.tokenizer import Tokenizer
from router_svc.text.tokenizer_files import load_tokenizer


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return load_tokenizer(checkpoint_path())


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("pieces")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "a dog ate the cat"] * 20), model_writer=model, vocab_size=290,
        byte_fallback=True, model_type="bpe", hard_vocab_limit=False,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": true, "bos_token": "<s>", "eos_token": "</s>"}')
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def hunyuan(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("hy")
    tokens = [bytes([b]) for b in range(256)] + [b"th", b"the", b" c", b" ca"]
    lines = [base64.b64encode(token) + b" " + str(rank).encode() for rank, token in enumerate(tokens)]
    (folder / "hy.tiktoken").write_bytes(b"\n".join(lines))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "HYTokenizer"}')
    return load_tokenizer(folder)


@settings(max_examples=80, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_round_trips_and_streams(demo: Tokenizer, text: str) -> None:
    ids = demo.encode(text, add_special_tokens=False)
    plain = demo.decode(ids)
    stream = Detokenizer(demo)
    parts = [stream.add((token,)) for token in ids]
    assert "".join(parts) + stream.finish() == plain
    assert not any("\ufffd" in part for part in parts if "\ufffd" not in text)
    if "<|" not in text:
        assert plain == text


@settings(max_examples=80, deadline=None)
@given(ids=st.lists(st.integers(0, 259), max_size=40))
def test_any_ids_stream_to_the_whole(demo: Tokenizer, hunyuan: Tokenizer, ids: list[int]) -> None:
    for tokenizer in (demo, hunyuan):
        stream = Detokenizer(tokenizer)
        assert "".join(stream.add((token,)) for token in ids) + stream.finish() == tokenizer.decode(ids)


@pytest.mark.parametrize("text", [b"\x80" * 200, b"\xe2" * 199 + b"\x82\xac!", b"a" + b"\xf0\x9f" * 90, b"\xff" * 64])
def test_endless_broken_bytes_are_told_as_they_come(hunyuan: Tokenizer, text: bytes) -> None:
    stream, parts = Detokenizer(hunyuan), []
    for token in text:  # the first 256 ids are the bytes
        parts.append(stream.add((token,)))
        assert len(stream._ids) - stream._given <= 32
    assert "".join(parts) + stream.finish() == hunyuan.decode(list(text))


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30))
def test_bytes_of_tokens_join_to_the_text(demo: Tokenizer, hunyuan: Tokenizer, pieces: Tokenizer, text: str) -> None:
    for tokenizer in (demo, hunyuan):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert b"".join(map(tokenizer.token_bytes, ids)) == tokenizer.decode(ids, skip_special=False).encode()
    word = pieces.encode("€", add_special_tokens=False)
    assert b"".join(map(pieces.token_bytes, word)).lstrip() == "€".encode()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_prompt_and_what_follows_join_to_the_whole(
    demo: Tokenizer, hunyuan: Tokenizer, pieces: Tokenizer, data: st.DataObject
) -> None:
    """Wherever the prompt ends, inside a character or among specials."""
    # Of byte pieces only whole characters: a wrong byte takes the right ones before it from the library's text.
    tokenizer, least, most = data.draw(st.sampled_from(((demo, 0, 300), (hunyuan, 0, 270), (pieces, 259, 289))))
    ids = data.draw(st.lists(st.integers(least, most), max_size=30))
    ids += tokenizer.encode(data.draw(st.text("a €😀", max_size=6)), add_special_tokens=False)
    cut = data.draw(st.integers(0, len(ids)))
    prompt, rest = ids[:cut], ids[cut:]
    stream = Detokenizer(tokenizer, prompt)
    text = "".join(stream.add((token,)) for token in rest) + stream.finish()
    whole, before = tokenizer.decode(ids), tokenizer.decode(prompt)
    assert whole.endswith(text), "what the prompt left of a character is given with its end"
    if not before.endswith("\ufffd"):
        assert before + text == whole


def test_the_first_word_keeps_its_space(pieces: Tokenizer) -> None:
    prompt = pieces.encode("the cat", add_special_tokens=True)
    (word,) = pieces.encode("sat", add_special_tokens=False)
    for ids in (prompt, [*prompt, *pieces.encode(" on", add_special_tokens=False)] * 9):
        assert Detokenizer(pieces, ids).add((word,)) == " sat"
    assert Detokenizer(pieces, [1]).add((word,)) == "sat", "a text that begins with it has none in front"
    assert Detokenizer(pieces, [*prompt, *[2] * 50]).add((word,)) == " sat", "specials behind the text are no text"


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_texts_of_tokens_join_to_the_text_and_places_lie_in_it(
    demo: Tokenizer, hunyuan: Tokenizer, pieces: Tokenizer, data: st.DataObject
) -> None:
    tokenizer = data.draw(st.sampled_from((demo, hunyuan, pieces)))
    prompt = tokenizer.encode(data.draw(st.text("ab €", max_size=8)), add_special_tokens=True)
    ids = tokenizer.encode(data.draw(st.text("the cat€😀", max_size=20)), add_special_tokens=False)
    walked = TokenTexts(tokenizer, prompt)
    found = [walked.step(token) for token in ids]
    text = Detokenizer(tokenizer, prompt)
    whole = "".join(text.add((token,)) for token in ids) + text.finish()
    assert b"".join(one.raw for one in found).decode(errors="replace") == whole
    for one in found:
        if "\ufffd" not in one.text and not one.text.startswith("<0x"):
            assert whole[one.offset :].startswith(one.text)


def test_alternatives_are_measured_where_they_stand(pieces: Tokenizer) -> None:
    the, cat = pieces.encode("the cat", add_special_tokens=False)
    texts = TokenTexts(pieces)
    assert texts.here(cat).text == "cat", "nothing stands before it"
    assert texts.step(the) == ("the", b"the", 0)
    assert texts.here(cat) == (" cat", b" cat", 3)
    assert texts.here(2) == ("</s>", b"</s>", 3), "specials by their name"
    assert texts.step(2).offset == 3
    assert texts.step(cat) == (" cat", b" cat", 3), "specials take no room"


def test_sentencepiece_spaces_and_bos(pieces: Tokenizer) -> None:
    ids = pieces.encode("the cat sat", add_special_tokens=True)
    assert ids[0] == 1
    stream = Detokenizer(pieces)
    assert "".join(stream.add((token,)) for token in ids) + stream.finish() == "the cat sat"


def test_hunyuan_specials_follow_the_ranks(hunyuan: Tokenizer) -> None:
    assert hunyuan.encode("<|startoftext|>the cat<|extra_0|>", False) == [261, 257, 259, ord("t"), 265]
    assert hunyuan.decode([261, 257, 259]) == "the ca"
    assert hunyuan.encode("12", False) == [ord("1"), ord("2")]


@given(
    text=st.text("abc", max_size=30),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(1, 5)),
)
def test_stop_strings_cut_at_the_first_match(text: str, stops: list[str], cuts: list[int]) -> None:
    finder, out, at = StopStrings(tuple(stops)), "", 0
    for size in [*cuts, len(text)]:
        out += finder.add(text[at : at + size])
        at += size
        if finder.matched:
            break
    if finder.matched is None:
        out += finder.finish()
    ends = [text.find(s) + len(s) for s in stops if s in text]
    if not ends:
        assert (finder.matched, out) == (None, text)
    else:
        assert finder.matched is not None
        assert text.startswith(out + finder.matched)
