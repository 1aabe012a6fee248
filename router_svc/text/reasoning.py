"""Reasoning apart from content, while it streams. Tags are ordinary text, so partial ones are held back.

A parser gives the same whatever the chunks are: its state changes only at complete tags. Of white space only line breaks
belong to tags; all else is the model's text.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

from experts.errors import UserError
from router_svc.text.overlap import overlap
from router_svc.text.parser_names import PARSERS

_OPEN, _CLOSE = "<think>", "</think>"
_ANSWER, _END_OF_ANSWER = "<answer>", "</answer>"
_BREAKS = "\r\n"


class Parted(NamedTuple):
    """New text of each kind."""

    reasoning: str
    content: str


class ReasoningParser(ABC):
    """One choice's text. reasons: whether what comes next is reasoning."""

    reasons = False

    @abstractmethod
    def add(self, text: str) -> Parted:
        """Take new text, give what is decided."""

    @abstractmethod
    def finish(self, cut: bool) -> Parted:
        """The rest, once no more text comes. cut: it ended by length, so that a part of a tag may be left: it is dropped."""


class Plain(ReasoningParser):
    """Everything is content."""

    def add(self, text: str) -> Parted:
        return Parted("", text)

    def finish(self, cut: bool) -> Parted:
        return Parted("", "")


class Tagged(ReasoningParser):
    """Text that may begin with <think>…</think>; the rest is content.

    opened: the reasoning begins at once, be it that the prompt has opened it, or that the model never writes <think>
    answer_tags: content may stand between <answer> and </answer>, as Hunyuan writes it
    """

    def __init__(self, opened: bool, answer_tags: bool) -> None:
        self._part: Literal["start", "reasoning", "content"] = "reasoning" if opened else "start"
        self._fresh = True  # nothing of this part has been given yet: line breaks belong to the tag before it
        self._may_open = opened  # a model may write the tag that its prompt has opened already
        self._answer_tags = answer_tags
        self._in_answer = False
        self._held = ""

    @property
    def reasons(self) -> bool:  # type: ignore[override]
        return self._part == "reasoning"

    def add(self, text: str) -> Parted:
        self._held += text
        reasoning, content = "", ""
        if self._part == "start" and not self._begins():
            return Parted("", "")
        if self._part == "reasoning":
            reasoning = self._reason()
        if self._part == "content":
            content = self._answer()
        return Parted(reasoning, content)

    def finish(self, cut: bool) -> Parted:
        rest, self._held = self._held, ""
        if cut and (partial := self._partial(rest)):
            rest = rest[: len(rest) - partial].rstrip(_BREAKS)
        if self._part == "reasoning":
            return Parted(rest.rstrip(_BREAKS), "")
        if self._in_answer and rest.rstrip(_BREAKS).endswith(_END_OF_ANSWER):
            rest = rest.rstrip(_BREAKS).removesuffix(_END_OF_ANSWER).rstrip(_BREAKS)
        return Parted("", rest)

    def _begins(self) -> bool:
        """Whether it is known what the text begins with."""
        text = self._held.lstrip(_BREAKS)
        if not text or (len(text) < len(_OPEN) and _OPEN.startswith(text)):
            return False
        if text.startswith(_OPEN):
            self._part, self._held = "reasoning", text[len(_OPEN) :]
        elif self._answer_tags and _ANSWER.startswith(text[: len(_ANSWER)]):
            self._part = "content"
        else:
            self._part, self._fresh = "content", False  # text without tags stays as it is
        return True

    def _reason(self) -> str:
        """Reasoning that is decided; at its end the part becomes content."""
        if self._fresh:
            text = self._held.lstrip(_BREAKS)
            if self._may_open:
                if len(text) < len(_OPEN) and _OPEN.startswith(text):
                    return ""
                self._may_open = False
                text = text.removeprefix(_OPEN).lstrip(_BREAKS)
            self._held = text
            self._fresh = not text
        at = self._held.find(_CLOSE)
        if at >= 0:
            found, self._held = self._held[:at].rstrip(_BREAKS), self._held[at + len(_CLOSE) :]
            self._part, self._fresh = "content", True
            return found
        keep = overlap(self._held, _CLOSE)
        bare = self._held[: len(self._held) - keep]
        keep += len(bare) - len(bare.rstrip(_BREAKS))
        return self._give(keep)

    def _answer(self) -> str:
        """Content that is decided."""
        if self._fresh:
            text = self._held.lstrip(_BREAKS)
            if self._answer_tags and not self._in_answer:
                if len(text) < len(_ANSWER) and _ANSWER.startswith(text):
                    return ""
                if text.startswith(_ANSWER):
                    self._in_answer = True
                    text = text[len(_ANSWER) :].lstrip(_BREAKS)
            self._held = text
            self._fresh = not text
        return self._give(self._undecided() if self._in_answer else 0)

    def _undecided(self) -> int:
        """Length of what may still be the end of the answer: line breaks, </answer> or its beginning, line breaks."""
        bare = self._held.rstrip(_BREAKS)
        whole = bare.removesuffix(_END_OF_ANSWER)
        if whole == bare and len(bare) == len(self._held):
            whole = bare[: len(bare) - overlap(bare, _END_OF_ANSWER)]
        return len(self._held) - len(whole.rstrip(_BREAKS))

    def _partial(self, text: str) -> int:
        """Length of a tag's beginning at the text's end, where such a tag may stand."""
        tags = {"start": (_OPEN, _ANSWER), "reasoning": (_CLOSE,), "content": (_END_OF_ANSWER,) * self._in_answer}
        return max((overlap(text, tag) for tag in tags[self._part]), default=0)

    def _give(self, keep: int) -> str:
        given, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return given


def parser_name(wanted: str, architecture: str, template: str | None) -> str:
    """Resolve "auto": by the family, and by whether the chat template speaks of thinking. Raises UserError."""
    if wanted not in PARSERS:
        raise UserError(f"reasoning parser {wanted!r}", " or ".join(PARSERS), "--reasoning-parser")
    if wanted != "auto":
        return wanted
    if architecture.startswith("hunyuan"):
        return "hunyuan_a13b"
    return "qwen3" if template and "think" in template else "none"


def make_parser(name: str, prompt: str, said: Sequence[str] = ()) -> ReasoningParser:
    """A parser for one choice of a chat.

    prompt: as the template rendered it
    said: what others than the model said, the newest last; a tag in there opens nothing
    """
    if name == "none":
        return Plain()
    own = prompt
    for text in reversed(said):
        if text.strip() and (at := prompt.rfind(text.strip())) >= 0:
            own = prompt[at + len(text.strip()) :]
            break
    opened = own.rfind(_OPEN) > own.rfind(_CLOSE)
    return Tagged(opened or name == "deepseek_r1", answer_tags=name == "hunyuan_a13b")
