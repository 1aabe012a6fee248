"""The shipped tokenizer keeps any text, and the shipped template writes Hunyuan-A13B's documented strings."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from router_svc.demo_model.chat import CHAT_TEMPLATE, Message, render
from router_svc.demo_model.path import checkpoint_path
from router_svc.demo_model.vocabulary import SIZE, SPECIALS

TOKENIZER = Tokenizer.from_file(str(checkpoint_path() / "tokenizer.json"))
CHATS = {
    "<|startoftext|>Hi<|extra_0|>": [("user", "Hi")],
    "<|startoftext|>Be brief.<|extra_4|>Hi<|extra_0|>": [("system", "Be brief."), ("user", "Hi")],
    "<|startoftext|>Hi<|extra_0|>Hello<|eos|><|startoftext|>Bye<|extra_0|>": [
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Bye"),
    ],
    "<|startoftext|>S<|extra_4|>Hi<|extra_0|>Hello<|eos|><|startoftext|>Bye<|extra_0|>": [
        ("system", "S"),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Bye"),
    ],
    "<|startoftext|>/no_think Hi<|extra_0|>": [("system", ""), ("user", "/no_think Hi")],
}


@pytest.fixture(scope="module")
def hub_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(checkpoint_path())


@given(st.text().filter(lambda text: not any(special in text for special in SPECIALS)))
def test_any_text_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_it_has_the_size_the_network_expects_and_adds_nothing(hub_tokenizer: Any) -> None:
    assert TOKENIZER.get_vocab_size() == SIZE == len(hub_tokenizer)
    assert hub_tokenizer("1")["input_ids"] == TOKENIZER.encode("1").ids
    assert len(TOKENIZER.encode("1").ids) == 1


def test_special_tokens_are_one_token_and_their_ids_start_at_zero() -> None:
    assert [TOKENIZER.encode(special).ids for special in SPECIALS] == [[place] for place in range(len(SPECIALS))]


@pytest.mark.parametrize("tag", ["<think>", "</think>", "<answer>", "</answer>"])
def test_tags_are_ordinary_text_of_several_tokens(tag: str) -> None:
    assert len(TOKENIZER.encode(tag).ids) >= 3


def test_digits_stand_alone() -> None:
    assert TOKENIZER.encode("1234").tokens == ["1", "2", "3", "4"]


@pytest.mark.parametrize(("expected", "turns"), CHATS.items())
def test_the_template_writes_the_documented_strings(
    hub_tokenizer: Any, expected: str, turns: list[tuple[str, str]]
) -> None:
    messages = [{"role": role, "content": content} for role, content in turns]
    assert hub_tokenizer.apply_chat_template(messages, tokenize=False) == expected
    closed = hub_tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=False)
    assert closed == expected + "<think>\n\n</think>\n"
    own = [Message(*turn) for turn in turns]
    assert (render(own), render(own, enable_thinking=False)) == (expected, closed)


def test_the_shipped_template_is_the_one_in_the_source(hub_tokenizer: Any) -> None:
    assert hub_tokenizer.chat_template == CHAT_TEMPLATE
