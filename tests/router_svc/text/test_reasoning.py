"""Reasoning apart from content: whatever the chunks, the same; only tags and line breaks beside them are no text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experts.errors import UserError
from router_svc.text.reasoning import ReasoningParser, make_parser, parser_name


def read(parser: ReasoningParser, text: str, cuts: list[int], cut: bool = False) -> tuple[str, str]:
    """(reasoning, content) of a text that comes in pieces."""
    reasoning = content = ""
    at = 0
    for size in [*cuts, len(text)]:
        part = parser.add(text[at : at + size])
        reasoning, content = reasoning + part.reasoning, content + part.content
        at += size
    rest = parser.finish(cut)
    return reasoning + rest.reasoning, content + rest.content


HUNYUAN = (
    ("<think>\nfirst\n1<2\n</think>\n<answer>\n42 is <it>\n</answer>", ("first\n1<2", "42 is <it>")),
    ("<think>\n\n</think>\n<answer>\n7\n</answer>\n", ("", "7")),
    ("<answer>\n7\n</answer>", ("", "7")),
    ("<answer>a </answer> b</answer>", ("", "a </answer> b")),
    ("an <answer> tag </answer>", ("", "an <answer> tag </answer>")),
    ("<think>x</think>say <answer>7</answer>", ("x", "say <answer>7</answer>")),
    ("<answer>7</answ", ("", "7</answ")),
)
QWEN = (
    ("plain <think>text", ("", "plain <think>text")),
    ("    return x\n", ("", "    return x\n")),
    ("\n\n  x", ("", "\n\n  x")),
    ("<think>never ends", ("never ends", "")),
    ("<think>\n never ends\n", (" never ends", "")),
    ("<thin air", ("", "<thin air")),
    ("<think>easy</think>\n\n    return x", ("easy", "    return x")),
    ("<think> a </think> b </think> c", (" a ", " b </think> c")),
    ("<answer>\n7\n</answer>", ("", "<answer>\n7\n</answer>")),
    ("", ("", "")),
)
R1 = (
    ("why</think>\nso", ("why", "so")),
    ("<think>\nwhy\n</think>\nso", ("why", "so")),
    ("no end", ("no end", "")),
)


@given(cuts=st.lists(st.integers(1, 9)))
def test_reasoning_is_apart_whatever_the_chunks(cuts: list[int]) -> None:
    for name, cases in (("hunyuan_a13b", HUNYUAN), ("qwen3", QWEN), ("deepseek_r1", R1)):
        for text, wanted in cases:
            assert read(make_parser(name, ""), text, cuts) == wanted, (name, text)
    assert read(make_parser("none", "<think>"), "<think>a</think>b", cuts) == ("", "<think>a</think>b")


TAGGED = st.lists(
    st.sampled_from(("<think>", "</think>", "<answer>", "</answer>", "\n", " ", "a", "<", "<th", "</", "é")), max_size=9
)


@given(parts=TAGGED, cuts=st.lists(st.integers(1, 4)), name=st.sampled_from(("hunyuan_a13b", "qwen3", "deepseek_r1")),
       opened=st.booleans(), cut=st.booleans())  # fmt: skip
def test_any_text_comes_out_the_same_whatever_the_chunks(
    parts: list[str], cuts: list[int], name: str, opened: bool, cut: bool
) -> None:
    text, prompt = "".join(parts), "<think>" if opened else ""
    whole = read(make_parser(name, prompt), text, [], cut)
    assert read(make_parser(name, prompt), text, cuts, cut) == whole
    assert read(make_parser(name, prompt), text, [1] * len(text), cut) == whole
    if not any(tag in text for tag in ("<think>", "</think>", "<answer>", "</answer>")) and not (cut or opened):
        assert name == "deepseek_r1" or whole == ("", text), "text without tags is untouched"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<think>almost</thi", ("almost", "")),
        ("<think>almost\n<", ("almost", "")),
        ("<thi", ("", "")),
        ("<think>a</think>b <", ("a", "b <")),
        ("<answer>\n7\n</answ", ("", "7")),
    ],
)
def test_no_part_of_a_tag_is_left_where_the_length_ends_it(text: str, wanted: tuple[str, str]) -> None:
    assert read(make_parser("hunyuan_a13b", ""), text, [], cut=True) == wanted


def test_a_prompt_that_ends_inside_a_tag_has_opened_it() -> None:
    for prompt in ("user: x\nassistant:<think>\n", "user: x\nassistant:<think>\nOkay, "):
        assert read(make_parser("qwen3", prompt, ["x"]), "why</think>\nso", []) == ("why", "so")
    closed = "user: x\nassistant:<think>\n\n</think>\n\n"
    assert read(make_parser("qwen3", closed, ["x"]), "so", []) == ("", "so")
    asked = "user: what does <think> mean?\nassistant:"
    said = ["be brief", "what does <think> mean?"]
    assert read(make_parser("qwen3", asked, said), "it opens", []) == ("", "it opens"), "a user's tag opens nothing"


def test_reasons_says_what_comes_next() -> None:
    parser = make_parser("qwen3", "")
    assert not parser.reasons
    parser.add("<think>a")
    assert parser.reasons
    parser.add("</think>")
    assert not parser.reasons


def test_parser_is_chosen_by_family() -> None:
    assert parser_name("auto", "hunyuan_v1_moe", None) == "hunyuan_a13b"
    assert parser_name("auto", "mixtral", "{{ x }}") == "none"
    with pytest.raises(UserError, match="reasoning parser"):
        parser_name("gpt", "mixtral", None)
