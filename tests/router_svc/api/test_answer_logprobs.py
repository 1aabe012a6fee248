"""Names of tokens in answers: none takes another's place."""

from router_svc.api.calls import Chunk, NamedLogprob
from router_svc.api.openai.answers import Answer


def entry(
    token: int, text: str, logprob: float | None, top: tuple[NamedLogprob, ...] = (), at: int = 0
) -> NamedLogprob:
    return NamedLogprob(token, text, text.encode(), at, logprob, top)


def logprobs(kind: str, *entries: NamedLogprob) -> dict[str, object]:
    answer = Answer(kind=kind, request_id="r", model="m", with_ids=False, with_logprobs=True)
    choices = answer.whole([(0, Chunk(0, 0, "x", logprobs=entries, finish_reason="stop"))], {})["choices"]
    found: dict[str, object] = choices[0]["logprobs"]
    return found


def test_of_two_tokens_with_one_text_the_likelier_keeps_it() -> None:
    first, twin, other = entry(1, " a", -0.1), entry(2, " a", -2.5), entry(3, "b", -3.0)
    found = logprobs("text", entry(2, " a", -2.5, (first, twin)), entry(3, "b", -3.0, (first,), at=2))
    assert found["top_logprobs"] == [{" a": -0.1, "token_id:2": -2.5}, {" a": -0.1, "b": -3.0}]
    assert found["tokens"] == ["token_id:2", "b"]
    assert found["text_offset"] == [0, 2]
    assert logprobs("text", other)["top_logprobs"] == [{"b": -3.0}], "the token itself is always there"
    begins = logprobs("text", entry(1, "a", None), entry(3, "b", -1.0))
    assert begins["top_logprobs"] == [None, {"b": -1.0}]
    assert begins["token_logprobs"] == [None, -1.0]


def test_a_chats_list_has_as_many_as_were_asked_for() -> None:
    first, twin = entry(1, " a", -0.1), entry(2, " a", -2.5)
    (found,) = logprobs("chat", entry(2, " a", -2.5, (first, twin)))["content"]  # type: ignore[misc]
    assert [(one["token"], one["logprob"]) for one in found["top_logprobs"]] == [(" a", -0.1), (" a", -2.5)]
    assert bytes(found["bytes"]) == b" a"
