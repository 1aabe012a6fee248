"""ChoiceOutput: stop strings are cut wherever tokens and events begin and end, in any script."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_svc.api.choice import ChoiceOutput
from router_svc.demo_model.path import checkpoint_path
from router_svc.request import TokenEvent, TokenLogprob
from router_svc.text.reasoning import make_parser
from router_svc.text.tokenizer import Tokenizer
from router_svc.text.tokenizer_files import load_tokenizer

_TEXT = st.text(
    st.one_of(st.sampled_from("abc <>/think€😀ÿ\u0301"), st.characters(exclude_categories=("Cs",))), max_size=40
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(checkpoint_path())


def events(ids: list[int], cuts: list[int]) -> list[TokenEvent]:
    """The ids as events of the given sizes, with a logprob each; the last ends with "length"."""
    out, at = [], 0
    for size in [*cuts, len(ids)]:
        part = tuple(ids[at : at + size])
        if part:
            logprobs = tuple(TokenLogprob(token, -1.0) for token in part)
            out.append(
                TokenEvent("r", 0, 0, at, part, logprobs, finish_reason=None if at + size < len(ids) else "length")
            )
        at += size
    return out


@settings(max_examples=200, deadline=None)
@given(text=_TEXT, stops=st.lists(_TEXT.filter(bool), max_size=2), place=st.integers(0, 39), size=st.integers(1, 4),
       cuts=st.lists(st.integers(1, 5)))  # fmt: skip
def test_text_ends_where_the_first_stop_string_begins(
    tokenizer: Tokenizer, text: str, stops: list[str], place: int, size: int, cuts: list[int]
) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer.decode(ids)
    stops = [*stops, *([whole[place : place + size]] if whole[place : place + size] else [])]
    output, got, chunks = ChoiceOutput(tokenizer, (1, 2, 3), tuple(stops), None, (), ()), "", []
    for event in events(ids, cuts):
        chunks.append(output.take(event))
        got += chunks[-1].text
        if output.ended:
            break
    if not chunks:
        return
    last = chunks[-1]
    assert last.usage is not None
    assert last.usage.completion_tokens == sum(len(chunk.token_ids) for chunk in chunks)
    assert all(len(chunk.logprobs) == len(chunk.token_ids) for chunk in chunks)
    if any(stop in whole for stop in stops):
        assert last.finish_reason == "stop"
        assert isinstance(last.stop_reason, str)
        assert whole.startswith(got + last.stop_reason)
        assert not any(stop in got for stop in stops)
    else:
        assert (last.finish_reason, got) == ("length", whole)


@settings(max_examples=60, deadline=None)
@given(thought=_TEXT, answer=_TEXT, cuts=st.lists(st.integers(1, 7)))
def test_reasoning_is_the_same_whatever_the_events(
    tokenizer: Tokenizer, thought: str, answer: str, cuts: list[int]
) -> None:
    text = f"<think>\n{thought}\n</think>\n<answer>\n{answer}\n</answer>"
    ids = tokenizer.encode(text, add_special_tokens=False)

    def read(sizes: list[int]) -> tuple[str, str]:
        output = ChoiceOutput(tokenizer, (1, 2, 3), (), make_parser("hunyuan_a13b", ""), (), ())
        chunks = [output.take(event) for event in events(ids, sizes)]
        return "".join(chunk.reasoning for chunk in chunks), "".join(chunk.text for chunk in chunks)

    assert read(cuts) == read([1] * len(ids)) == read([])


def test_stop_strings_count_in_the_content_only(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<think>carry 1</think>\n42 carry on", add_special_tokens=False)

    def read(cuts: list[int], **options: bool) -> tuple[str, str, object, int]:
        output = ChoiceOutput(tokenizer, (1,), ("carry",), make_parser("qwen3", ""), (), (), **options)
        chunks = []
        for event in events(ids, cuts):
            chunks.append(output.take(event))
            if output.ended:
                break
        usage = chunks[-1].usage
        assert usage is not None
        text, reasoning = ("".join(getattr(c, part) for c in chunks) for part in ("text", "reasoning"))
        return reasoning, text, chunks[-1].stop_reason, usage.reasoning_tokens

    reasoning, text, reason, count = read([1] * len(ids))
    assert (reasoning, text, reason) == ("carry 1", "42 ", "carry")
    assert count == len(tokenizer.encode("carry 1</think>", add_special_tokens=False))
    assert read([])[:3] == ("carry 1", "42 ", "carry")
    assert read([1] * len(ids), include_stop=True)[1] == "42 carry"


def test_ids_that_end_a_choice(tokenizer: Tokenizer) -> None:
    """The caller's are named, the model's own are not; neither has text unless it is asked for."""
    a, b = tokenizer.encode("a", False)[0], tokenizer.encode("b", False)[0]

    def read(eos: tuple[int, ...], stop: tuple[int, ...], **options: bool) -> tuple[str, object]:
        output = ChoiceOutput(tokenizer, (1,), (), None, eos, stop, **options)
        chunk = output.take(TokenEvent("r", 0, 0, 0, (a, b), finish_reason="stop"))
        return chunk.text, chunk.stop_reason

    assert read((b,), ()) == ("a", None)
    assert read((), (b,)) == ("a", b)
    assert read((b,), (b,), include_stop=True) == ("ab", b)
